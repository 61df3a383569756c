"""The model the layouts run: random weights in the proportions of a real one, small enough for two cores."""

from __future__ import annotations

from pathlib import Path

from tests.tiny_checkpoint import write_random_checkpoint

NAME = "fidelity"
NUM_LAYERS, MOE_LAYERS = 6, (1, 2, 3, 4, 5)
NUM_EXPERTS, TOP_K = 32, 8


def write_model(directory: Path) -> Path:
    """6.3 MB an expert and 1 GB of them: memory and arithmetic weigh more than software. Written once."""
    model_dir = directory / NAME
    if not (model_dir / "model.safetensors").exists():
        write_random_checkpoint(
            model_dir,
            seed=0,
            vocab_size=4096,
            hidden_size=1024,
            num_layers=NUM_LAYERS,
            num_mtp_layers=3,
            num_heads=16,
            num_sliding_heads=24,
            num_kv_heads=4,
            head_dim=64,
            sliding_window=256,
            intermediate_size=2048,
            moe_layers=MOE_LAYERS,
            num_experts=NUM_EXPERTS,
            top_k=TOP_K,
            moe_intermediate_size=512,
            share_expert_dim=512,
            router_scaling=1.0,
        )
    return model_dir
