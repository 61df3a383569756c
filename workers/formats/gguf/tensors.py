"""Where the tensors of a GGUF model lie, by their published names. Nothing but headers is read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from placement.errors import CheckpointError
from placement.files.gguf_file import GgufFile
from placement.files.quote import quote
from placement.weight_format import WeightFormat
from workers.formats.gguf.names import published_name
from workers.formats.gguf.parts import PlacedTensor
from workers.formats.gguf.types import READABLE, READABLE_NAMES, type_name
from workers.model_config import Step35Config


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
        CheckpointError: a tensor of a type that does not load, of broken rows, outside its file, or over
            another one.
    """
    found = {published_name(name): _weights(name, placed) for name, placed in tensors.items()}
    _refuse_overlaps(found.values())
    for layer in config.layers:
        head_dim = layer.head_dim
        _split_qkv(found, layer.index, layer.num_heads * head_dim, layer.num_kv_heads * head_dim)
    for layer in config.layers[config.num_hidden_layers :]:
        _share_head(found, layer.index)
    return found


def _refuse_overlaps(found: Iterable[GgufWeights]) -> None:
    before: GgufWeights | None = None
    for weights in sorted(found, key=lambda weights: (weights.file.path, weights.start)):
        if (
            before is not None
            and before.file is weights.file
            and weights.start < before.start + before.num_bytes
        ):
            raise CheckpointError(
                f"{weights.file.path}: tensor {quote(weights.name)} begins at byte {weights.start:,} of the "
                f"file, inside tensor {quote(before.name)}: the file is damaged, download it again"
            )
        before = weights


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
