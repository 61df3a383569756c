"""Small model shapes for placement tests."""

from __future__ import annotations

from placement.model_shape import AttentionShape, ModelShape


def small_shape(
    num_moe_layers: int = 3, num_experts: int = 10, top_k: int = 2, name: str = "small"
) -> ModelShape:
    """One dense layer, then MoE layers; hidden size 16, experts of width 8."""
    full = AttentionShape(num_heads=2, num_kv_heads=1, head_dim=8, window=0, has_head_gate=True)
    sliding = AttentionShape(num_heads=4, num_kv_heads=1, head_dim=8, window=32, has_head_gate=True)
    return ModelShape(
        name=name,
        hidden_size=16,
        vocab_size=100,
        moe_layers=tuple(range(1, 1 + num_moe_layers)),
        num_experts=num_experts,
        top_k=top_k,
        moe_intermediate_size=8,
        shared_intermediate_size=8,
        dense_intermediate_size=24,
        attention=(full, *[sliding] * num_moe_layers, sliding),
        num_mtp_layers=1,
    )
