"""The shape of potluck-tiny, in the field names of the published config.json."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FULL, SLIDING = "full_attention", "sliding_attention"
NUM_TRUNK_LAYERS, NUM_MTP_LAYERS = 6, 3
NUM_LAYERS = NUM_TRUNK_LAYERS + NUM_MTP_LAYERS


def _layer_types() -> tuple[str, ...]:
    return tuple(FULL if i % 4 == 0 and i < NUM_TRUNK_LAYERS else SLIDING for i in range(NUM_LAYERS))


def _by_type(full: float, sliding: float) -> tuple[float, ...]:
    return tuple(full if kind == FULL else sliding for kind in _layer_types())


def _last_moe_layer(limit: float) -> tuple[float, ...]:
    return tuple(limit if i == NUM_TRUNK_LAYERS - 1 else 0.0 for i in range(NUM_LAYERS))


@dataclass(frozen=True, slots=True)
class TinyConfig:
    """Model shape and constants; every per-layer tuple is trunk layers + MTP layers long."""

    vocab_size: int = 2048
    hidden_size: int = 128
    intermediate_size: int = 512
    num_hidden_layers: int = NUM_TRUNK_LAYERS
    num_nextn_predict_layers: int = NUM_MTP_LAYERS
    num_attention_heads: int = 4
    num_attention_groups: int = 2
    head_dim: int = 32
    attention_other_setting: dict[str, Any] = field(
        default_factory=lambda: {
            "attention_type": SLIDING,
            "num_attention_heads": 6,
            "num_attention_groups": 2,
            "head_dim": 32,
        }
    )
    layer_types: tuple[str, ...] = field(default_factory=_layer_types)
    sliding_window: int = 128
    use_head_wise_attn_gate: bool = True
    rope_theta: tuple[float, ...] = field(default_factory=lambda: _by_type(5_000_000.0, 10_000.0))
    partial_rotary_factors: tuple[float, ...] = field(default_factory=lambda: _by_type(0.5, 1.0))
    rope_scaling: dict[str, Any] = field(
        default_factory=lambda: {
            "rope_type": "llama3",
            "factor": 2.0,
            "original_max_position_embeddings": 131072,
            "low_freq_factor": 1.0,
            "high_freq_factor": 32.0,
        }
    )
    yarn_only_types: tuple[str, ...] = (FULL,)
    max_position_embeddings: int = 8192
    max_seq_len: int = 8192
    rms_norm_eps: float = 1e-5
    zero_centered: bool = True
    moe_layers_enum: str = ",".join(str(i) for i in range(1, NUM_TRUNK_LAYERS))
    moe_num_experts: int = 288
    moe_top_k: int = 8
    moe_intermediate_size: int = 16
    share_expert_dim: int = 64
    moe_router_activation: str = "sigmoid"
    moe_router_scaling_factor: float = 3.0
    norm_expert_weight: bool = True
    use_moe: bool = True
    use_moe_router_bias: bool = True
    need_fp32_gate: bool = True
    swiglu_limits: tuple[float, ...] = field(default_factory=lambda: _last_moe_layer(7.0))
    swiglu_limits_shared: tuple[float, ...] = field(default_factory=lambda: _last_moe_layer(16.0))
    tie_word_embeddings: bool = False
    bos_token_id: int = 0
    eos_token_id: tuple[int, ...] = (1, 3)
    pad_token_id: int = 1

    @property
    def moe_layers(self) -> frozenset[int]:
        """Indices of the layers with routed experts."""
        return frozenset(int(i) for i in self.moe_layers_enum.split(",") if i)

    def heads(self, layer: int) -> int:
        """Query heads of one layer: full and sliding layers differ."""
        if self.layer_types[layer] == FULL:
            return self.num_attention_heads
        return int(self.attention_other_setting["num_attention_heads"])

    def to_json(self) -> dict[str, Any]:
        """The config.json document."""
        document: dict[str, Any] = {"architectures": ["Step3p5ForCausalLM"], "model_type": "step3p5"}
        document |= {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return document | {"torch_dtype": "bfloat16"}

    @classmethod
    def from_json(cls, path: Path) -> TinyConfig:
        """Reads a config.json written by `to_json`."""
        document = json.loads(path.read_text())
        for extra in ("architectures", "model_type", "torch_dtype"):
            document.pop(extra, None)
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in document.items()}
        return cls(**fields)
