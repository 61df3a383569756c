"""Comparing the head with transformers on tiny random configurations; used by tests and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from orchestrator.generate import GenerationParams, GenerationResult, generate
from tests.orchestrator.heads import hidden_states, load_model
from tests.orchestrator.step35_oracle import Oracle
from tests.tiny_checkpoint import write_random_checkpoint

PROMPT_TOKENS = 40
NEW_TOKENS = 64

# Arguments of write_random_checkpoint by name.
ORACLE_CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {"seed": 1},
    "six tokens: drafts are accepted": {"seed": 10, "vocab_size": 6},
    "288 experts, top 8": {"seed": 2, "num_experts": 288, "top_k": 8, "moe_intermediate_size": 16},
    "clamped swiglu": {
        "seed": 3,
        "swiglu_limits": {3: 0.3, 5: 0.05},
        "swiglu_limits_shared": {0: 0.1, 5: 0.2},
    },
    "same head counts": {"seed": 4, "num_heads": 8, "num_sliding_heads": 8, "num_kv_heads": 4},
    "one kv head, odd sizes": {
        "seed": 5,
        "num_heads": 3,
        "num_sliding_heads": 5,
        "num_kv_heads": 1,
        "head_dim": 24,
        "hidden_size": 76,
        "vocab_size": 101,
        "intermediate_size": 52,
        "moe_intermediate_size": 20,
        "share_expert_dim": 44,
    },
    "no rope scaling, window 3": {"seed": 6, "rope_scaling": None, "sliding_window": 3},
    "deep, all MoE": {"seed": 7, "num_layers": 9, "moe_layers": tuple(range(9)), "num_mtp_layers": 1},
    "dense only, no MTP": {"seed": 8, "moe_layers": (), "num_mtp_layers": 0},
    "large router bias, scaling 1": {"seed": 9, "router_bias_scale": 2.0, "router_scaling": 1.0},
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """One configuration's result.

    Attributes:
        max_abs_logit_error: over all logits of prompt and generated tokens, computed without drafts.
        equal_tokens: how many of the generated tokens are the oracle's greedy choice after those before.
        generation: greedy, prompt in chunks, as many drafts as there are MTP layers.
    """

    max_abs_logit_error: float
    equal_tokens: int
    generation: GenerationResult


def compare_with_oracle(name: str, directory: Path) -> Comparison:
    """Write the checkpoint `name` of ORACLE_CONFIGS and run it here and in transformers, in float32.

    The prompt is longer than the window. The oracle makes one pass over the whole sequence: if each generated
    token is its choice after those before, it would have generated the same sequence.
    """
    model_dir = write_random_checkpoint(directory, **ORACLE_CONFIGS[name])
    model, oracle = load_model(model_dir), Oracle(model_dir)
    generator = torch.Generator().manual_seed(9)
    prompt = torch.randint(model.config.vocab_size, (PROMPT_TOKENS,), generator=generator).tolist()
    params = GenerationParams(
        max_tokens=NEW_TOKENS, ignore_eos=True, mtp=len(model.weights.mtp), chunk_size=7
    )
    generation = generate(model, prompt, params)
    sequence = [*prompt, *generation.token_ids[:-1]]

    expected = oracle.logits(sequence)
    choices = expected[PROMPT_TOKENS - 1 :].clone()
    choices[:, list(model.config.eos_token_ids)] = -torch.inf
    equal = choices.argmax(dim=1) == torch.tensor(generation.token_ids)
    logits = model.logits(hidden_states(model, sequence))
    error = (logits - expected).abs().max().item()
    return Comparison(error, int(equal.sum()), generation)
