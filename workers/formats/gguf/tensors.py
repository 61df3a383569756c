"""Where the tensors of a GGUF model lie, by their published names. Nothing but headers is read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from placement.errors import CheckpointError
from placement.files.gguf_file import GgufFile, GgufTensor
from placement.files.quote import quote
from placement.weight_format import BFLOAT16, FLOAT16, FLOAT32, WeightFormat
from workers.formats.gguf.names import published_name
from workers.formats.gguf.parts import PlacedTensor
from workers.formats.gguf.types import NUMBERS, READABLE, READABLE_NAMES, type_name
from workers.model_config import Step35Config

_DAMAGED = "the file is damaged, download it again and compare its checksum"


@dataclass(frozen=True, slots=True)
class GgufWeights:
    """A tensor, or some rows of one: whole blocks of `form` from byte `start` of `file`.

    `name`: of the tensor in the file.
    """

    name: str
    file: GgufFile
    form: WeightFormat
    shape: tuple[int, ...]
    start: int

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape[:-1]) * self.form.row_bytes(self.shape[-1] if self.shape else 1)


def weights_of(tensors: Mapping[str, PlacedTensor], config: Step35Config) -> Mapping[str, GgufWeights]:
    """Published name -> where it lies, in the files' order.

    Raises:
        CheckpointError: a tensor of a type that does not load or that it never has, of broken rows, outside
            its file, or not right behind the one before it.
    """
    found = {published_name(name): _weights(name, placed) for name, placed in tensors.items()}
    _check_types(found)
    for file in {placed.file.path: placed.file for placed in tensors.values()}.values():
        _check_places(file)
    for layer in config.layers:
        head_dim = layer.head_dim
        _split_qkv(found, layer.index, layer.num_heads * head_dim, layer.num_kv_heads * head_dim)
    for layer in config.layers[config.num_hidden_layers :]:
        _share_head(found, layer.index)
    return found


# What every writer keeps wide, whatever type it quantises the matrices to.
_WIDE = (FLOAT32, FLOAT16, BFLOAT16)
_ALWAYS_WIDE = ("norm.weight", ".moe.gate.weight", ".moe.router_bias")


def _check_types(found: Mapping[str, GgufWeights]) -> None:
    """Whether norms, routers and their biases are of a type that they have in some file."""
    for name, weights in found.items():
        if name.endswith(_ALWAYS_WIDE) and weights.form not in _WIDE:
            raise CheckpointError(
                f"{weights.file.path}: tensor {quote(weights.name)} is stored as "
                f"{type_name(NUMBERS[weights.form])}, expected F32, F16 or BF16 as norms and routers are: "
                f"{_DAMAGED}"
            )


def _check_places(file: GgufFile) -> None:
    """Whether tensors lie end to end, each padded to the alignment, as in all GGUF files.

    Where they do not, the type or the sizes of one are not those that it was written with. What a file has
    behind its last tensor is nobody's.
    """
    before, end = "", 0
    expected: int | None = 0
    for name, tensor in sorted(file.tensors.items(), key=lambda item: item[1].offset):
        if expected is not None and tensor.offset != expected:
            where = f"{file.path}: tensor {quote(name)} begins at byte {file.data_offset + tensor.offset:,}"
            if tensor.offset < end:
                raise CheckpointError(f"{where} of the file, inside tensor {quote(before)}: {_DAMAGED}")
            neighbour = f"right behind tensor {quote(before)}" if before else "where the data begin"
            raise CheckpointError(
                f"{where} of the file, expected byte {file.data_offset + expected:,}, {neighbour}: {_DAMAGED}"
            )
        num_bytes = _num_bytes(tensor)
        # Of a type that does not load, in a file of which only some tensors are taken.
        before, end = name, tensor.offset + (num_bytes or 0)
        expected = None if num_bytes is None else -(-end // file.alignment) * file.alignment


def _num_bytes(tensor: GgufTensor) -> int | None:
    form, columns = READABLE.get(tensor.type), tensor.shape[-1] if tensor.shape else 1
    if form is None or not form.fits(columns):
        return None
    return math.prod(tensor.shape[:-1]) * form.row_bytes(columns)


def _split_qkv(found: dict[str, GgufWeights], layer: int, query_rows: int, key_rows: int) -> None:
    """Queries, keys and values that a file has as one matrix, one below the other."""
    prefix = f"model.layers.{layer}"
    fused = found.get(f"{prefix}.attn_qkv.weight")
    if fused is None or len(fused.shape) != 2 or fused.shape[0] != query_rows + 2 * key_rows:
        return
    del found[f"{prefix}.attn_qkv.weight"]
    start, columns = fused.start, fused.shape[1]
    for part, rows in (("q", query_rows), ("k", key_rows), ("v", key_rows)):
        one = dataclasses.replace(fused, shape=(rows, columns), start=start)
        found[f"{prefix}.self_attn.{part}_proj.weight"] = one
        start += one.num_bytes


def _share_head(found: dict[str, GgufWeights], layer: int) -> None:
    """An MTP layer without norm or head of its own uses the trunk's, as llama.cpp has it."""
    prefix = f"model.layers.{layer}"
    if f"{prefix}.eh_proj.weight" not in found:
        return
    for own, trunk in (("norm", "model.norm.weight"), ("output", "lm_head.weight")):
        if trunk in found:
            found.setdefault(f"{prefix}.transformer.shared_head.{own}.weight", found[trunk])


def _weights(name: str, placed: PlacedTensor) -> GgufWeights:
    file, tensor = placed.file, placed.stored
    where = f"{file.path}: tensor {quote(name)}"
    form = READABLE.get(tensor.type)
    if form is None:
        raise CheckpointError(
            f"{where} is stored as {type_name(tensor.type)}, expected one of {READABLE_NAMES}: use a file "
            "quantised in those types"
        )
    # With a 0 among them, sizes of any magnitude would fit into the file.
    if 0 in tensor.shape:
        raise CheckpointError(
            f"{where} has shape {quote(list(tensor.shape))}, expected sizes above 0: the file is damaged, "
            "download it again"
        )
    columns = tensor.shape[-1] if tensor.shape else 1
    if not form.fits(columns):
        raise CheckpointError(
            f"{where} has rows of {columns} weights, expected a multiple of {form.block_weights} for type "
            f"{type_name(tensor.type)}: the file is damaged, download it again"
        )
    weights = GgufWeights(name, file, form, tensor.shape, file.data_offset + tensor.offset)
    end = weights.start + weights.num_bytes
    if end > file.num_bytes:
        raise CheckpointError(
            f"{where} ends at byte {end:,}, but the file has {file.num_bytes:,}: it is truncated, download "
            "it again"
        )
    if tensor.offset % file.alignment:
        raise CheckpointError(
            f"{where} begins at byte {tensor.offset:,} of the data, expected a multiple of "
            f"general.alignment, {file.alignment}: the file is damaged, download it again"
        )
    if form.block_weights == 1 and weights.start % form.block_bytes:
        raise CheckpointError(
            f"{where} begins at byte {weights.start:,} of the file, expected a multiple of "
            f"{form.block_bytes} for type {type_name(tensor.type)}: convert the model again"
        )
    return weights
