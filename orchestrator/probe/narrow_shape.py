"""The sizes of the narrow model that the head's software is measured with; loads no torch."""

from __future__ import annotations

from placement.model_shape import ModelShape
from workers.model_config import LayerConfig, Step35Config

HIDDEN, WIDTH, HEADS, KV_HEADS, HEAD_DIM = 512, 64, 4, 1, 64
LAYERS, MTP_LAYERS, EXPERTS, TOP_K, VOCABULARY = 8, 1, 64, 8, 1024
_WINDOW = 512
EPS = 1e-5


def narrow_config() -> Step35Config:
    layers = tuple(
        LayerConfig(
            index=index,
            is_sliding=False,
            num_heads=HEADS,
            num_kv_heads=KV_HEADS,
            head_dim=HEAD_DIM,
            rope_theta=10_000.0,
            rotary_dim=HEAD_DIM,
            rope_scaling=None,
            is_moe=0 < index < LAYERS,
            swiglu_limit=0.0,
            swiglu_limit_shared=0.0,
        )
        for index in range(LAYERS + MTP_LAYERS)
    )
    return Step35Config(
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_nextn_predict_layers=MTP_LAYERS,
        vocab_size=VOCABULARY,
        bos_token_id=None,
        eos_token_ids=(),
        rms_norm_eps=EPS,
        intermediate_size=WIDTH,
        moe_layers=tuple(range(1, LAYERS)),
        moe_num_experts=EXPERTS,
        moe_top_k=TOP_K,
        moe_intermediate_size=WIDTH,
        share_expert_dim=WIDTH,
        moe_router_scaling_factor=1.0,
        norm_expert_weight=True,
        use_moe_router_bias=True,
        sliding_window=_WINDOW,
        max_position_embeddings=65_536,
        use_head_wise_attn_gate=True,
        zero_centered=True,
        tie_word_embeddings=False,
        layers=layers,
    )


def narrow_shape() -> ModelShape:
    return narrow_config().shape("probe")
