"""The configuration in a GGUF file's metadata, read through the same checks as a config.json.

Keys as llama.cpp's converter writes them (conversion of Step3p5ForCausalLM), defaults as its loader has them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from placement.errors import CheckpointError
from placement.files.quote import quote
from placement.model_shape import MOST_LAYERS
from workers.config.fields import Fields
from workers.config.layer_types import FULL, SLIDING
from workers.config.rope import RopeDivisors
from workers.formats.gguf.names import published_name
from workers.formats.gguf.parts import GgufParts
from workers.model_config import MOST_WIDTH, Step35Config

ARCHITECTURE = "step35"
KEY = f"{ARCHITECTURE}."
_ROPE_DIVISORS = "rope_freqs.weight"
_FIRST_OF_TRUNK = "blk.0.attn_norm.weight"
_ROUTER = "moe.gate.weight"
_DEFAULT_THETA = 10_000.0
_SIGMOID = 2

# Which key says what a field of config.json says, for messages and where nothing else is to be done.
_GGUF_KEYS: Mapping[str, str] = {
    "hidden_size": f"{KEY}embedding_length",
    "num_hidden_layers": f"{KEY}block_count",
    "num_nextn_predict_layers": f"{KEY}nextn_predict_layers",
    "vocab_size": f"{KEY}vocab_size",
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "num_attention_heads": f"{KEY}attention.head_count",
    "num_attention_groups": f"{KEY}attention.head_count_kv",
    "head_dim": f"{KEY}attention.key_length",
    "attention_other_setting.num_attention_heads": f"{KEY}attention.head_count",
    "attention_other_setting.num_attention_groups": f"{KEY}attention.head_count_kv",
    "layer_types": f"{KEY}attention.sliding_window_pattern",
    "sliding_window": f"{KEY}attention.sliding_window",
    "rope_theta": f"{KEY}rope.freq_base",
    "partial_rotary_factors": f"{KEY}rope.dimension_count",
    "max_position_embeddings": f"{KEY}context_length",
    "rms_norm_eps": f"{KEY}attention.layer_norm_rms_epsilon",
    "intermediate_size": f"{KEY}feed_forward_length",
    "moe_layers_enum": "tensors blk.N.ffn_gate_inp.weight",
    "moe_num_experts": f"{KEY}expert_count",
    "moe_top_k": f"{KEY}expert_used_count",
    "moe_intermediate_size": f"{KEY}expert_feed_forward_length",
    "share_expert_dim": f"{KEY}expert_shared_feed_forward_length",
    "moe_router_scaling_factor": f"{KEY}expert_weights_scale",
    "norm_expert_weight": f"{KEY}expert_weights_norm",
    "swiglu_limits": f"{KEY}swiglu_clamp_exp",
    "swiglu_limits_shared": f"{KEY}swiglu_clamp_shexp",
}
_AS_THEY_ARE = (
    "hidden_size",
    "bos_token_id",
    "sliding_window",
    "max_position_embeddings",
    "rms_norm_eps",
    "moe_num_experts",
    "moe_top_k",
    "share_expert_dim",
)
# What makes up a layer of a configuration, by the field of config.json that says it.
_OF_LAYER: Mapping[str, str] = {
    "is_sliding": "layer_types",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_attention_groups",
    "rotary_dim": "partial_rotary_factors",
    "is_moe": "moe_layers_enum",
    "swiglu_limit": "swiglu_limits",
    "swiglu_limit_shared": "swiglu_limits_shared",
}
# What is told of a configuration in other words than config.json's.
_RENAMED: Mapping[str, str] = {"eos_token_ids": "eos_token_id", "moe_layers": "moe_layers_enum"}
# Tokens that end an answer or a turn, each under a key of its own.
_END_TOKENS = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))


def read_config(file: GgufParts) -> Step35Config:
    """The configuration of a model; weights are not read.

    Norms of GGUF files have the 1 already added, so `zero_centered` is false. Which layers are MoE is seen
    from their routers, as llama.cpp does.

    Raises:
        CheckpointError: not a model of this architecture, or a key that is missing or wrong; names it.
    """
    metadata = Fields(str(file.path), file.metadata)
    architecture = metadata.get("general.architecture")
    if architecture != ARCHITECTURE:
        raise metadata.wrong(
            "general.architecture",
            architecture,
            f"{ARCHITECTURE!r}: Potluck runs models of the Step-3.5 architecture",
        )
    num_blocks = metadata.integer(f"{KEY}block_count", most=MOST_LAYERS)
    num_mtp = metadata.integer(f"{KEY}nextn_predict_layers", default=0, least=0, most=MOST_LAYERS)
    if num_mtp >= num_blocks:
        raise metadata.wrong(
            f"{KEY}nextn_predict_layers",
            num_mtp,
            f"less than {KEY}block_count, {num_blocks}: the other blocks are the model",
        )
    if num_mtp and _FIRST_OF_TRUNK not in file.tensors:
        raise CheckpointError(
            f"{file.path}: it has MTP layers alone, expected the model's other file: this one is found by "
            "itself when both are in one folder"
        )
    _refuse_other_models(metadata)
    kinds = _layer_types(metadata, num_blocks)
    raw = {name: metadata.get(_GGUF_KEYS[name]) for name in _AS_THEY_ARE}
    raw |= _heads(metadata, kinds)
    raw |= _rope(metadata, kinds)
    raw |= _router(metadata)
    moe_layers = _moe_layers(file, num_blocks)
    dense_layers = [layer for layer in range(num_blocks) if layer not in set(moe_layers)]
    raw |= {
        "num_hidden_layers": num_blocks - num_mtp,
        "num_nextn_predict_layers": num_mtp,
        "vocab_size": _vocab_size(metadata, file),
        "eos_token_id": [i for i in (metadata.get(key) for key in _END_TOKENS) if i is not None],
        "layer_types": kinds,
        "intermediate_size": _width(metadata, "intermediate_size", num_blocks, dense_layers),
        "moe_intermediate_size": _width(metadata, "moe_intermediate_size", num_blocks, moe_layers),
        "moe_layers_enum": moe_layers,
        "swiglu_limits": _by_layer(metadata, f"{KEY}swiglu_clamp_exp", num_blocks),
        "swiglu_limits_shared": _by_layer(metadata, f"{KEY}swiglu_clamp_shexp", num_blocks),
        "zero_centered": False,
    }
    config = Step35Config.from_fields(Fields(str(file.path), raw, spelled=_GGUF_KEYS))
    return _with_divisors(config, file)


def where_trunks_differ(one: Step35Config, other: Step35Config) -> str | None:
    """The key of the first thing that two configurations say differently of their trunks, None if nothing."""
    for field in dataclasses.fields(one):
        if field.name in ("layers", "num_nextn_predict_layers"):
            continue
        if getattr(one, field.name) != getattr(other, field.name):
            name = _RENAMED.get(field.name, field.name)
            return _GGUF_KEYS.get(name, name)
    trunks = (config.layers[: config.num_hidden_layers] for config in (one, other))
    for ours, theirs in zip(*trunks, strict=True):
        for field in dataclasses.fields(ours):
            if getattr(ours, field.name) != getattr(theirs, field.name):
                if field.name == "rope_scaling":
                    return _ROPE_DIVISORS
                return f"{_GGUF_KEYS[_OF_LAYER.get(field.name, field.name)]}[{ours.index}]"
    return None


def _refuse_other_models(metadata: Fields) -> None:
    """Switches of other models, with the value that the Step-3.5 architecture has."""
    # 0 stands for what the architecture has.
    if metadata.get(f"{KEY}expert_gating_func") != 0:
        metadata.only(f"{KEY}expert_gating_func", _SIGMOID)
    if metadata.get(f"{KEY}rope.scaling.type") != "linear":
        metadata.only(f"{KEY}rope.scaling.type", "none")
    # Without a type it is linear, and 0 stands for 1.
    for key in ("rope.scaling.factor", "rope.scale_linear"):
        if (factor := metadata.number(f"{KEY}{key}", 1.0)) not in (0, 1):
            raise metadata.wrong(f"{KEY}{key}", factor, "1: full layers are scaled by rope_freqs.weight")
    key_length = metadata.integer(f"{KEY}attention.key_length", most=MOST_WIDTH)
    for name in ("value_length", "key_length_swa", "value_length_swa"):
        length = metadata.get(f"{KEY}attention.{name}")
        if length not in (None, key_length):
            raise metadata.wrong(
                f"{KEY}attention.{name}", length, f"what attention.key_length says, {key_length}"
            )


def _by_layer(metadata: Fields, key: str, num_blocks: int) -> list[Any] | None:
    """One entry a block, from a list or one value for all; None where the file does not say."""
    value = metadata.get(key)
    if not isinstance(value, list):
        return None if value is None else [value] * num_blocks
    if len(value) != num_blocks:
        raise metadata.wrong(
            key, value, f"{num_blocks} entries, one a block as {KEY}block_count says, found {len(value)}"
        )
    return value


def _layer_types(metadata: Fields, num_blocks: int) -> list[str]:
    key = f"{KEY}attention.sliding_window_pattern"
    pattern = _by_layer(metadata, key, num_blocks)
    # Some writers have numbers for them.
    if pattern is None or not all(isinstance(entry, int) for entry in pattern):
        raise metadata.wrong(key, pattern, f"true or false for each of {num_blocks} blocks: true slides")
    return [SLIDING if slides else FULL for slides in pattern]


def _of_kind(metadata: Fields, key: str, values: Sequence[Any], kinds: Sequence[str]) -> dict[str, Any]:
    """One value a layer type, out of one a block.

    Raises:
        CheckpointError: blocks of one type that disagree.
    """
    found: dict[str, Any] = {}
    for block, (value, kind) in enumerate(zip(values, kinds, strict=True)):
        if found.setdefault(kind, value) != value:
            raise metadata.wrong(
                f"{key}[{block}]", value, f"{quote(found[kind])} as in the blocks of type {kind} before it"
            )
    return found


def _heads(metadata: Fields, kinds: Sequence[str]) -> dict[str, Any]:
    by_kind = {}
    values: list[Any] | None = None
    for field in ("num_attention_heads", "num_attention_groups"):
        key = _GGUF_KEYS[field]
        # Where nothing is said of keys and values, there are as many as queries.
        values = _by_layer(metadata, key, len(kinds)) or values
        by_kind[field] = _of_kind(metadata, key, values or [None] * len(kinds), kinds)
    full = {field: of.get(FULL, of.get(SLIDING)) for field, of in by_kind.items()}
    sliding = {field: of.get(SLIDING, of.get(FULL)) for field, of in by_kind.items()}
    head_dim = metadata.get(_GGUF_KEYS["head_dim"])
    return full | {"head_dim": head_dim, "attention_other_setting": sliding | {"head_dim": head_dim}}


def _rope(metadata: Fields, kinds: Sequence[str]) -> dict[str, Any]:
    """Bases and rotated parts: sliding layers rotate all that `rope.dimension_count` says, full ones half."""
    head_dim = metadata.integer(f"{KEY}attention.key_length", most=MOST_WIDTH)
    rotated = metadata.integer(f"{KEY}rope.dimension_count", default=head_dim, most=head_dim)
    sliding_rotated = metadata.integer(f"{KEY}rope.dimension_count_swa", default=rotated, most=head_dim)
    theta = {
        FULL: metadata.number(f"{KEY}rope.freq_base", _DEFAULT_THETA),
        SLIDING: metadata.number(f"{KEY}rope.freq_base_swa", _DEFAULT_THETA),
    }
    factor = {FULL: rotated / head_dim / 2, SLIDING: sliding_rotated / head_dim}
    return {
        "rope_theta": [theta[kind] for kind in kinds],
        "partial_rotary_factors": [factor[kind] for kind in kinds],
    }


def _router(metadata: Fields) -> dict[str, Any]:
    # Where a file says nothing, llama.cpp neither divides by the sum nor scales; a scale of 0 is none.
    return {
        "norm_expert_weight": metadata.flag(f"{KEY}expert_weights_norm") is True,
        "moe_router_scaling_factor": metadata.number(f"{KEY}expert_weights_scale", 1.0) or 1.0,
    }


def _vocab_size(metadata: Fields, file: GgufParts) -> Any:
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.stored.shape) != 2:
        raise CheckpointError(
            f"{file.path}: expected a tensor token_embd.weight of [vocabulary, width]: check that the file "
            "was downloaded completely"
        )
    said = metadata.get(f"{KEY}vocab_size")
    if said not in (None, embedding.stored.shape[0]):
        raise metadata.wrong(
            f"{KEY}vocab_size", said, f"the rows of tensor token_embd.weight, {embedding.stored.shape[0]}"
        )
    return embedding.stored.shape[0]


def _moe_layers(file: GgufParts, num_blocks: int) -> list[int]:
    names = {published_name(name) for name in file.tensors}
    return [layer for layer in range(num_blocks) if f"model.layers.{layer}.{_ROUTER}" in names]


def _width(metadata: Fields, field: str, num_blocks: int, layers: Sequence[int]) -> Any:
    """The one width that these layers have; of all layers where there are none."""
    key = _GGUF_KEYS[field]
    widths = _by_layer(metadata, key, num_blocks) or [None] * num_blocks
    meant = layers or range(num_blocks)
    return next(iter(_of_kind(metadata, key, [widths[i] for i in meant], [field] * len(meant)).values()))


def _with_divisors(config: Step35Config, file: GgufParts) -> Step35Config:
    """llama3 scaling as GGUF has it: what each frequency of the full layers is divided by.

    The tensor has a value for each pair of a head. Those past the rotated pairs say nothing.
    """
    if _ROPE_DIVISORS not in file.tensors:
        return config
    most = max(layer.head_dim for layer in config.layers) // 2
    values = file.float32(_ROPE_DIVISORS, "a value for each pair of a head", most).reshape(-1).tolist()
    layers = []
    for layer in config.layers:
        if layer.is_sliding:
            layers.append(layer)
            continue
        divisors = tuple(values[: layer.rotary_dim // 2])
        if len(divisors) != layer.rotary_dim // 2 or not all(d > 0 and math.isfinite(d) for d in divisors):
            raise CheckpointError(
                f"{file.path}: {_ROPE_DIVISORS} is {quote(values)}, expected {layer.rotary_dim // 2} or more "
                "numbers above 0, which frequencies are divided by"
            )
        layers.append(dataclasses.replace(layer, rope_scaling=RopeDivisors(divisors)))
    return dataclasses.replace(config, layers=tuple(layers))
