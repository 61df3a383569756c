"""The tiny configurations on which the head is compared with other implementations."""

from __future__ import annotations

from typing import Any

# Arguments of write_random_checkpoint by name.
ORACLE_CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {"seed": 1},
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
