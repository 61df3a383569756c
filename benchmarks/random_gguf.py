"""A GGUF file of this architecture with random weights of given shapes and types, for benchmarks.

    python -m benchmarks.random_gguf OUT.gguf [--moe-layers 4] [--experts q4_k/q4_k/q5_k] [--output q6_k]

Ours and llama.cpp load it. It has no tokenizer, so ask with token ids, unless --tokenizer gives it another
model's: servers do not start without one. Real shapes with 4 MoE layers are 11 GB
in Q4_K, written in about half a minute.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Annotated, Any

import gguf
import numpy as np
import typer

from models.tiny.gguf_file import add_tokenizer, rope_divisors, writing
from workers.config.fields import Fields
from workers.model_config import LayerConfig, Step35Config
from workers.probe.random_blocks import TYPES, BlockPool, ggml_type

_POOL_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class FileShape:
    """Sizes of a model; the defaults are Step-3.5-Flash's, with fewer layers."""

    hidden: int = 4096
    vocab: int = 128_896
    dense_layers: int = 1
    moe_layers: int = 4
    mtp_layers: int = 0
    heads: int = 64
    sliding_heads: int = 96
    kv_heads: int = 8
    head_dim: int = 128
    window: int = 512
    dense_width: int = 11_264
    experts: int = 288
    top_k: int = 8
    expert_width: int = 1280
    shared_width: int = 1280
    max_positions: int = 262_144

    @property
    def layers(self) -> int:
        """Of the trunk."""
        return self.dense_layers + self.moe_layers


SMALL = FileShape(
    hidden=256,
    vocab=512,
    moe_layers=3,
    mtp_layers=3,
    heads=4,
    sliding_heads=8,
    kv_heads=2,
    head_dim=64,
    window=32,
    dense_width=512,
    experts=16,
    top_k=4,
    expert_width=256,
    shared_width=256,
    max_positions=4096,
)
"""For tests: every row is whole blocks of 256."""


@dataclass(frozen=True, slots=True)
class FileTypes:
    """Forms by kind of tensor. Norms and routers are float32 always.

    Attributes:
        experts: gate, up and down of routed experts, a MoE layer each; the layers after the last begin anew.
        head: attention, dense FFN, shared experts, and the MTP layers' projections.
        output: lm_head and the MTP layers' own heads.
        embedding: of the tokens.
    """

    experts: tuple[tuple[str, str, str], ...] = (("q4_k", "q4_k", "q4_k"),)
    head: str = "q4_k"
    output: str = "q4_k"
    embedding: str = "q4_k"

    @classmethod
    def all_in(cls, form: str) -> FileTypes:
        return cls(((form, form, form),), form, form, form)


@dataclass(frozen=True, slots=True)
class FileTensor:
    """A tensor of the file: random, of standard deviation `deviation` around `mean`, or `values`."""

    name: str
    shape: tuple[int, ...]
    form: str
    deviation: float = 0.0
    mean: float = 0.0
    values: tuple[float, ...] = ()

    @property
    def num_blocks(self) -> int:
        return prod(self.shape) // gguf.GGML_QUANT_SIZES[ggml_type(self.form)][0]

    @property
    def num_bytes(self) -> int:
        return self.num_blocks * gguf.GGML_QUANT_SIZES[ggml_type(self.form)][1]


def file_config(shape: FileShape) -> Step35Config:
    """The configuration, as a config.json of these sizes would give it."""
    blocks = shape.layers + shape.mtp_layers
    sliding = [layer % 4 != 0 or layer >= shape.layers for layer in range(blocks)]
    raw: dict[str, Any] = {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.dense_width,
        "num_hidden_layers": shape.layers,
        "num_nextn_predict_layers": shape.mtp_layers,
        "vocab_size": shape.vocab,
        "bos_token_id": 0,
        "eos_token_id": [1, 2],
        "num_attention_heads": shape.heads,
        "num_attention_groups": shape.kv_heads,
        "head_dim": shape.head_dim,
        "attention_other_setting": {
            "num_attention_heads": shape.sliding_heads,
            "num_attention_groups": shape.kv_heads,
            "head_dim": shape.head_dim,
        },
        "layer_types": ["sliding_attention" if s else "full_attention" for s in sliding],
        "sliding_window": shape.window,
        "use_head_wise_attn_gate": True,
        "rope_theta": [10_000.0 if s else 5_000_000.0 for s in sliding],
        "partial_rotary_factors": [1.0 if s else 0.5 for s in sliding],
        "max_position_embeddings": shape.max_positions,
        "rms_norm_eps": 1e-5,
        "moe_layers_enum": list(range(shape.dense_layers, shape.layers)),
        "moe_num_experts": shape.experts,
        "moe_top_k": shape.top_k,
        "moe_intermediate_size": shape.expert_width,
        "share_expert_dim": shape.shared_width,
        "use_moe_router_bias": True,
        "norm_expert_weight": True,
        "moe_router_scaling_factor": 3.0,
        "zero_centered": False,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 2.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 32.0,
            "original_max_position_embeddings": 131_072,
        },
        "yarn_only_types": ["full_attention"],
    }
    return Step35Config.from_fields(Fields("random weights", raw))


def file_tensors(shape: FileShape, types: FileTypes) -> list[FileTensor]:
    """All tensors but `rope_freqs`, in the file's order."""
    config = file_config(shape)
    tensors = [
        FileTensor("token_embd.weight", (shape.vocab, shape.hidden), types.embedding, deviation=1.0),
        _norm("output_norm.weight", shape.hidden),
        _matrix("output.weight", (shape.vocab, shape.hidden), types.output),
    ]
    for block, layer in enumerate(config.layers):
        tensors += [replace(t, name=f"blk.{block}.{t.name}") for t in _attention(shape, layer, types.head)]
        if block in config.moe_layers:
            turn = block - shape.dense_layers
            moe = _moe(shape, types.experts[turn % len(types.experts)], types.head)
        else:
            moe = _ffn("", shape.dense_width, shape.hidden, (types.head,) * 3)
        tensors += [replace(t, name=f"blk.{block}.{t.name}") for t in moe]
        if block >= shape.layers:
            tensors += [replace(t, name=f"blk.{block}.nextn.{t.name}") for t in _mtp(shape, types)]
    return tensors


def write_random_gguf(
    path: Path,
    shape: FileShape = FileShape(),
    types: FileTypes = FileTypes(),
    *,
    seed: int = 0,
    tokenizer: Path | None = None,
) -> Path:
    """Write the file, first under another name, and give back `path`.

    Args:
        tokenizer: directory of a model whose tokens the first rows of the vocabulary stand for.

    Raises:
        CheckpointError: the directory has no tokenizer like potluck-tiny's.
        ValueError: a row is no whole number of a type's blocks.
    """
    config = file_config(shape)
    tensors = file_tensors(shape, types)
    for tensor in tensors:
        block = gguf.GGML_QUANT_SIZES[ggml_type(tensor.form)][0]
        if tensor.shape[-1] % block:
            raise ValueError(f"{tensor.name}: rows of {tensor.shape[-1]} are no blocks of {block} weights")
    divisors = rope_divisors(config)
    if divisors is not None:
        size = (len(divisors),)
        tensors.insert(0, FileTensor("rope_freqs.weight", size, "float32", values=tuple(divisors.tolist())))
    with writing(path, config, path.stem) as writer:
        if tokenizer is None:
            writer.add_tokenizer_model("no_vocab")
        else:
            add_tokenizer(writer, tokenizer, shape.vocab)
        for tensor in tensors:
            kind = ggml_type(tensor.form)
            writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.num_bytes, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        assert writer.fout is not None
        out = writer.fout[0]
        writer.write_padding(out, out.tell())
        pools: dict[tuple[str, float], BlockPool] = {}
        for index, tensor in enumerate(tensors):
            for part in _content(tensor, pools, seed + index):
                out.write(part)
            writer.write_padding(out, tensor.num_bytes)
    return path


def _content(
    tensor: FileTensor, pools: dict[tuple[str, float], BlockPool], seed: int
) -> Iterator[memoryview]:
    if tensor.values or tensor.mean:
        values = np.array(tensor.values, np.float32)
        if not tensor.values:
            noise = np.random.default_rng(seed).standard_normal(tensor.shape, np.float32)
            values = np.float32(tensor.mean) + np.float32(tensor.deviation) * noise
        yield memoryview(values.tobytes())
        return
    key = (tensor.form, tensor.deviation)
    if key not in pools:
        most = _POOL_BYTES * tensor.num_blocks // tensor.num_bytes
        pools[key] = BlockPool(*key, min(tensor.num_blocks, most), seed)
    for part in pools[key].take(tensor.num_blocks):
        yield part.data


def _norm(name: str, width: int) -> FileTensor:
    return FileTensor(name, (width,), "float32", deviation=0.1, mean=1.0)


def _matrix(name: str, shape: tuple[int, ...], form: str) -> FileTensor:
    """Products with rows of size 1 have size 1."""
    return FileTensor(name, shape, form, deviation=shape[-1] ** -0.5)


def _attention(shape: FileShape, layer: LayerConfig, form: str) -> list[FileTensor]:
    width, kv_width = layer.num_heads * layer.head_dim, layer.num_kv_heads * layer.head_dim
    return [
        _norm("attn_norm.weight", shape.hidden),
        _matrix("attn_q.weight", (width, shape.hidden), form),
        _matrix("attn_k.weight", (kv_width, shape.hidden), form),
        _matrix("attn_v.weight", (kv_width, shape.hidden), form),
        _matrix("attn_gate.weight", (layer.num_heads, shape.hidden), form),
        _matrix("attn_output.weight", (shape.hidden, width), form),
        _norm("attn_q_norm.weight", layer.head_dim),
        _norm("attn_k_norm.weight", layer.head_dim),
        _norm("ffn_norm.weight", shape.hidden),
    ]


def _ffn(
    kind: str, width: int, hidden: int, forms: Sequence[str], experts: tuple[int, ...] = ()
) -> list[FileTensor]:
    gate, up, down = forms
    return [
        _matrix(f"ffn_gate{kind}.weight", (*experts, width, hidden), gate),
        _matrix(f"ffn_up{kind}.weight", (*experts, width, hidden), up),
        _matrix(f"ffn_down{kind}.weight", (*experts, hidden, width), down),
    ]


def _moe(shape: FileShape, experts: Sequence[str], head: str) -> list[FileTensor]:
    return [
        _matrix("ffn_gate_inp.weight", (shape.experts, shape.hidden), "float32"),
        # Small beside the scores' own spread, so that tokens and not the bias choose.
        FileTensor("exp_probs_b.bias", (shape.experts,), "float32", deviation=0.02),
        *_ffn("_exps", shape.expert_width, shape.hidden, experts, (shape.experts,)),
        *_ffn("_shexp", shape.shared_width, shape.hidden, (head,) * 3),
    ]


def _mtp(shape: FileShape, types: FileTypes) -> list[FileTensor]:
    return [
        _matrix("eh_proj.weight", (shape.hidden, 2 * shape.hidden), types.head),
        _norm("enorm.weight", shape.hidden),
        _norm("hnorm.weight", shape.hidden),
        _norm("shared_head_norm.weight", shape.hidden),
        _matrix("shared_head_head.weight", (shape.vocab, shape.hidden), types.output),
    ]


def expert_types(text: str) -> tuple[tuple[str, str, str], ...]:
    """`q4_k` or `gate/up/down`, several layers' with commas.

    Raises:
        typer.BadParameter: another form, or not one or three of them.
    """
    layers = []
    for layer in text.split(","):
        names = layer.split("/")
        if len(names) not in (1, 3) or not set(names) <= set(TYPES):
            raise typer.BadParameter(
                f"experts in {layer!r}: expected one, or gate/up/down, of {', '.join(TYPES)}"
            )
        gate, up, down = names if len(names) == 3 else names * 3
        layers.append((gate, up, down))
    return tuple(layers)


def main(
    path: Annotated[Path, typer.Argument(metavar="OUT.gguf")],
    small: Annotated[bool, typer.Option("--small", help="Shapes of tests: 256 wide.")] = False,
    moe_layers: Annotated[int, typer.Option(min=1, help="About 2.55 GB each in q4_k.")] = 4,
    mtp_layers: Annotated[int, typer.Option(min=0)] = 0,
    experts: Annotated[str, typer.Option(help="A form or gate/up/down; layers with commas.")] = "q4_k",
    head: Annotated[str, typer.Option(help="Attention, dense and shared FFN.")] = "q4_k",
    output: Annotated[str, typer.Option(help="lm_head.")] = "q4_k",
    embedding: Annotated[str, typer.Option(help="Of the tokens.")] = "q4_k",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Directory of a model whose tokenizer it gets.")
    ] = None,
) -> None:
    """Write a random model."""
    for form in (head, output, embedding):
        if form not in TYPES:
            raise typer.BadParameter(f"{form!r}: expected one of {', '.join(TYPES)}")
    shape = replace(SMALL if small else FileShape(), moe_layers=moe_layers, mtp_layers=mtp_layers)
    started = time.perf_counter()
    types = FileTypes(expert_types(experts), head, output, embedding)
    write_random_gguf(path, shape, types, seed=seed, tokenizer=tokenizer)
    print(f"{path}: {path.stat().st_size / 1e9:.2f} GB in {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    typer.run(main)
