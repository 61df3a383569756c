"""A Hugging Face checkpoint of this architecture as one GGUF file, as llama.cpp's converter lays it out.

    python -m models.tiny.gguf_file models/potluck-tiny OUT.gguf [--type q8_0|q4_0|f16|bf16|f32|...]

Matrices whose rows are whole blocks are quantised, the others become F16; norms, routers and their biases
stay F32. A tokenizer like potluck-tiny's goes into the file, with the chat template.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from numpy.typing import NDArray

from models.tiny.quantise import quantise
from orchestrator.model.rope import inverse_frequencies
from placement.errors import CheckpointError
from workers.config.rope import RopeScaling
from workers.formats.gguf.names import gguf_name
from workers.formats.safetensors import SafetensorsCheckpoint
from workers.model_config import LayerConfig, Step35Config

TYPES = {
    name: GGMLQuantizationType[name.upper()]
    for name in ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl", "mxfp4", "bf16", "f16", "f32")
}


def write_gguf(model_dir: Path, path: Path, type_name: str = "q8_0") -> None:
    """Write `path`: the trunk and the MTP layers of a checkpoint with stacked experts.

    Args:
        type_name: of matrices, one of TYPES.

    Raises:
        CheckpointError: the directory is no such checkpoint.
    """
    config = Step35Config.load(model_dir)
    checkpoint = SafetensorsCheckpoint.open(model_dir)
    with writing(path, config, model_dir.resolve().name) as writer:
        if (model_dir / "tokenizer.json").exists():
            add_tokenizer(writer, model_dir)
        else:
            writer.add_tokenizer_model("no_vocab")
        divisors = rope_divisors(config)
        if divisors is not None:
            writer.add_tensor("rope_freqs.weight", divisors)
        for published in sorted(checkpoint.stored):
            values = checkpoint.tensor(published, torch.float32).numpy()
            if published.endswith("norm.weight") and config.zero_centered:
                values = values + np.float32(1)
            stored, kind = _stored(published, values, TYPES[type_name])
            writer.add_tensor(gguf_name(_one_spelling(published)), stored, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


def _one_spelling(published: str) -> str:
    """The name without what some copies of the MTP layers' own heads say otherwise."""
    return re.sub(
        r"\.(transformer\.)?shared_head\.(norm|output|head)\.",
        lambda found: f".transformer.shared_head.{'norm' if found[2] == 'norm' else 'output'}.",
        published,
    )


def _stored(
    published: str, values: NDArray[np.float32], kind: GGMLQuantizationType
) -> tuple[NDArray[Any], GGMLQuantizationType]:
    if values.ndim < 2 or published.endswith("moe.gate.weight"):
        return values, GGMLQuantizationType.F32
    if values.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
        kind = GGMLQuantizationType.F16
    return quantise(values, kind), kind


def add_tokenizer(writer: GGUFWriter, model_dir: Path, vocab: int = 0) -> None:
    """Byte-level BPE with GPT-2's cutting of words, such as `models.tiny.tokenizer` makes.

    Args:
        vocab: tokens to have at least; those that the tokenizer lacks stand for nothing.

    Raises:
        CheckpointError: the directory has another kind.
    """
    document = json.loads((model_dir / "tokenizer.json").read_text())
    settings = json.loads((model_dir / "tokenizer_config.json").read_text())
    cutting = document["pre_tokenizer"]
    if (cutting["type"], cutting.get("use_regex"), document["model"]["type"]) != ("ByteLevel", True, "BPE"):
        raise CheckpointError(f"{model_dir}/tokenizer.json: expected byte-level BPE with GPT-2's pattern")
    tokens = sorted(document["model"]["vocab"], key=document["model"]["vocab"].__getitem__)
    added = {
        token["content"]: TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
        for token in document["added_tokens"]
    }
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    unused = [f"[PAD{number}]" for number in range(len(tokens), vocab)]
    writer.add_token_list(tokens + unused)
    types = [added.get(token, TokenType.NORMAL) for token in tokens]
    writer.add_token_types(types + [TokenType.UNUSED] * len(unused))
    merges = [" ".join(merge) for merge in document["model"]["merges"]]
    # The library cannot write an empty list.
    if merges:
        writer.add_token_merges(merges)
    writer.add_add_bos_token(bool(settings.get("add_bos_token")))
    if "chat_template" in settings:
        writer.add_chat_template(settings["chat_template"])


@contextmanager
def writing(path: Path, config: Step35Config, name: str) -> Iterator[GGUFWriter]:
    """A writer that has the configuration, for a file that lies at `path` only once it is whole."""
    partial = path.with_name(f"{path.name}.partial")
    writer = GGUFWriter(partial, "step35")
    try:
        _add_metadata(writer, config, name)
        yield writer
        writer.close()
        partial.rename(path)
    finally:
        writer.close()
        partial.unlink(missing_ok=True)


def _add_metadata(writer: GGUFWriter, config: Step35Config, name: str) -> None:
    """The configuration as llama.cpp's converter writes it, and no tokenizer."""
    trunk = config.layers[: config.num_hidden_layers]
    full, sliding = _first(trunk, is_sliding=False), _first(trunk, is_sliding=True)
    writer.add_name(name)
    writer.add_block_count(len(config.layers))
    writer.add_nextn_predict_layers(config.num_nextn_predict_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_head_count([layer.num_heads for layer in config.layers])
    writer.add_head_count_kv([layer.num_kv_heads for layer in config.layers])
    writer.add_key_length(full.head_dim)
    writer.add_value_length(full.head_dim)
    writer.add_sliding_window(config.sliding_window)
    writer.add_sliding_window_pattern([layer.is_sliding for layer in config.layers])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(full.rope_theta)
    writer.add_rope_freq_base_swa(sliding.rope_theta)
    writer.add_expert_count(config.moe_num_experts)
    writer.add_expert_used_count(config.moe_top_k)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_expert_shared_feed_forward_length(config.share_expert_dim)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_expert_weights_norm(config.norm_expert_weight)
    writer.add_expert_weights_scale(config.moe_router_scaling_factor)
    writer.add_leading_dense_block_count(min(config.moe_layers, default=len(trunk)))
    writer.add_moe_every_n_layers(1)
    writer.add_swiglu_clamp_exp([layer.swiglu_limit for layer in config.layers])
    writer.add_swiglu_clamp_shexp([layer.swiglu_limit_shared for layer in config.layers])
    if config.bos_token_id is not None:
        writer.add_bos_token_id(config.bos_token_id)
    for add, token in zip(
        (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id),
        config.eos_token_ids,
        strict=False,
    ):
        add(token)


def _first(layers: tuple[LayerConfig, ...], *, is_sliding: bool) -> LayerConfig:
    return next((layer for layer in layers if layer.is_sliding is is_sliding), layers[0])


def rope_divisors(config: Step35Config) -> NDArray[np.float32] | None:
    """float32 [head_dim / 2]: of the full layers' rotated pairs, then ones; None without scaling."""
    layer = _first(config.layers, is_sliding=False)
    if not isinstance(layer.rope_scaling, RopeScaling):
        return None
    divisors = np.ones(layer.head_dim // 2, dtype=np.float32)
    plain = inverse_frequencies(layer.rope_theta, layer.rotary_dim)
    scaled = inverse_frequencies(layer.rope_theta, layer.rotary_dim, layer.rope_scaling)
    divisors[: len(plain)] = plain / scaled
    return divisors


def main() -> None:
    """Write the file that the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("path", type=Path, metavar="OUT.gguf")
    parser.add_argument("--type", choices=tuple(TYPES), default="q8_0")
    arguments = parser.parse_args()
    write_gguf(arguments.model_dir, arguments.path, arguments.type)


if __name__ == "__main__":
    main()
