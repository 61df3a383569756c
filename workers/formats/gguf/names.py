"""GGUF's tensor names and the published ones (ggml-org/llama.cpp, gguf-py/gguf/tensor_mapping.py)."""

from __future__ import annotations

import re

_WHOLE_MODEL = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}

# Behind blk.N. and model.layers.N.
_OF_LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "attn_gate.weight": "self_attn.g_proj.weight",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "ffn_gate_inp.weight": "moe.gate.weight",
    "exp_probs_b.bias": "moe.router_bias",
    "ffn_gate_exps.weight": "moe.gate_proj.weight",
    "ffn_up_exps.weight": "moe.up_proj.weight",
    "ffn_down_exps.weight": "moe.down_proj.weight",
    "ffn_gate_shexp.weight": "share_expert.gate_proj.weight",
    "ffn_up_shexp.weight": "share_expert.up_proj.weight",
    "ffn_down_shexp.weight": "share_expert.down_proj.weight",
    "nextn.eh_proj.weight": "eh_proj.weight",
    "nextn.enorm.weight": "enorm.weight",
    "nextn.hnorm.weight": "hnorm.weight",
    "nextn.shared_head_norm.weight": "transformer.shared_head.norm.weight",
    "nextn.shared_head_head.weight": "transformer.shared_head.output.weight",
}
_GGUF_OF_LAYER = {published: name for name, published in _OF_LAYER.items()}
_GGUF_WHOLE_MODEL = {published: name for name, published in _WHOLE_MODEL.items()}

_IN_BLOCK = re.compile(r"blk\.(0|[1-9][0-9]{0,5})\.(.+)", re.ASCII | re.DOTALL)
_IN_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)", re.ASCII | re.DOTALL)


def published_name(name: str) -> str:
    """The published name of a GGUF tensor.

    A tensor of a block that the architecture does not have keeps its own name behind the layer's, so that it
    is found among the layer's tensors and refused there.
    """
    found = _IN_BLOCK.fullmatch(name)
    if found is None:
        return _WHOLE_MODEL.get(name, name)
    layer, part = found.groups()
    return f"model.layers.{layer}.{_OF_LAYER.get(part, part)}"


def block_of(name: str) -> int:
    """Number of the block that a GGUF tensor belongs to, -1 for none."""
    found = _IN_BLOCK.fullmatch(name)
    return -1 if found is None else int(found[1])


def layer_of(published: str) -> int:
    """Number of the layer that a published tensor belongs to, -1 for none."""
    found = _IN_LAYER.fullmatch(published)
    return -1 if found is None else int(found[1])


def gguf_name(published: str) -> str:
    """The name in GGUF files of a published tensor of this architecture.

    Raises:
        KeyError: it is none.
    """
    found = _IN_LAYER.fullmatch(published)
    if found is None:
        return _GGUF_WHOLE_MODEL[published]
    layer, part = found.groups()
    return f"blk.{layer}.{_GGUF_OF_LAYER[part]}"
