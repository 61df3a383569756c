"""Tensors of a GGUF model by their published names, memory-mapped."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from placement.errors import CheckpointError
from placement.files.gguf_file import GgufTensor
from placement.files.quote import quote
from placement.weight_format import ExpertFormat, WeightFormat
from workers.formats.checkpoint import Expert, StoredMatrix
from workers.formats.dequantise import PLAIN_DTYPES, float32_values
from workers.formats.gguf.mapped_file import MappedFile
from workers.formats.gguf.model import GgufModel
from workers.formats.gguf.names import gguf_name, published_name
from workers.formats.gguf.parts import PlacedTensor
from workers.formats.gguf.types import READABLE, READABLE_NAMES, type_name
from workers.model_config import Step35Config

# gate and up [intermediate, hidden], down [hidden, intermediate].
_PARTS = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class _Stored:
    """Where a tensor lies: whole blocks of `form` from byte `start` of `file`."""

    name: str
    file: MappedFile
    form: WeightFormat
    shape: tuple[int, ...]
    start: int

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape[:-1]) * self.form.row_bytes(self.shape[-1] if self.shape else 1)

    def matrices(self) -> Tensor:
        """[..., rows, columns] in the form's dtype, or uint8 [..., rows, bytes of a row]."""
        data = self.file.view(self.start, self.num_bytes)
        if self.form in PLAIN_DTYPES:
            return data.view(PLAIN_DTYPES[self.form]).view(self.shape)
        return data.view(*self.shape[:-1], -1)


class GgufCheckpoint:
    """A model in GGUF files: only what is asked for is read.

    `stored`: by the published name, the name in the files.
    """

    def __init__(self, model: GgufModel) -> None:
        """Check that all tensors load.

        Raises:
            CheckpointError: a tensor of a type that does not load, of broken rows, or outside its file.
        """
        parts, config = model.parts, model.config
        self.path: Path = parts.path
        self.notes: Sequence[str] = model.notes
        self._files = {placed.file.path: MappedFile(placed.file) for placed in parts.tensors.values()}
        self._tensors = {
            published_name(name): self._placed(name, placed) for name, placed in parts.tensors.items()
        }
        for layer in config.layers:
            self._split_qkv(
                layer.index, layer.num_heads * layer.head_dim, layer.num_kv_heads * layer.head_dim
            )
        for layer in config.layers[config.num_hidden_layers :]:
            self._share_head(layer.index)
        self.stored: Mapping[str, str] = {name: where.name for name, where in self._tensors.items()}
        self._experts_of_layer: tuple[int, list[Expert]] | None = None

    def has(self, name: str) -> bool:
        """Whether the tensor exists."""
        return name in self._tensors

    def has_below(self, prefix: str) -> bool:
        """Whether any tensor's name starts so."""
        return any(name.startswith(prefix) for name in self._tensors)

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        """A copy of one whole tensor in `dtype`: exact in float32, rounded to even where `dtype` is narrower.

        Raises:
            CheckpointError: no such tensor.
        """
        where = self._where(name)
        values = float32_values(where.file.view(where.start, where.num_bytes), where.form)
        return torch.empty(where.shape, dtype=dtype).copy_(values.view(where.shape))

    def matrix(self, name: str) -> StoredMatrix:
        """See `Checkpoint.matrix`."""
        where = self._where(name)
        if len(where.shape) != 2:
            raise CheckpointError(
                f"{self.path}: tensor {where.name} has shape {list(where.shape)}, expected a matrix: the "
                "metadata and the weights belong to different models"
            )
        rows, columns = where.shape
        return StoredMatrix(where.name, where.form, rows, columns, where.matrices())

    def expert_format(self, layer: int, config: Step35Config) -> ExpertFormat:
        """See `Checkpoint.expert_format`."""
        return ExpertFormat(*(self._experts(layer, part, config).form for part in _PARTS))

    def expert(self, layer: int, expert: int, config: Step35Config) -> Expert:
        """See `Checkpoint.expert`."""
        if self._experts_of_layer is None or self._experts_of_layer[0] != layer:
            stacks = [_matrices(self._experts(layer, part, config)) for part in _PARTS]
            self._experts_of_layer = layer, list(zip(*stacks, strict=True))
        return self._experts_of_layer[1][expert]

    def check_unchanged(self) -> None:
        """See `Checkpoint.check_unchanged`."""
        for file in self._files.values():
            file.check_unchanged()

    def release(self) -> None:
        """See `Checkpoint.release`."""
        self._experts_of_layer = None
        for file in self._files.values():
            file.release()

    def _where(self, name: str) -> _Stored:
        where = self._tensors.get(name)
        if where is None:
            raise CheckpointError(
                f"{self.path}: expected a tensor {_in_file(name)}, found none: check that the file was "
                "downloaded completely"
            )
        return where

    def _experts(self, layer: int, part: str, config: Step35Config) -> _Stored:
        where = self._where(f"model.layers.{layer}.moe.{part}.weight")
        hidden, inner = config.hidden_size, config.moe_intermediate_size
        matrix = (hidden, inner) if part == "down_proj" else (inner, hidden)
        expected = (config.moe_num_experts, *matrix)
        if where.shape != expected:
            raise CheckpointError(
                f"{self.path}: tensor {where.name} has shape {list(where.shape)}, expected "
                f"{list(expected)}: the metadata and the weights belong to different models"
            )
        return where

    def _placed(self, name: str, placed: PlacedTensor) -> _Stored:
        return _stored(name, placed.stored, self._files[placed.file.path])

    def _split_qkv(self, layer: int, query_rows: int, key_rows: int) -> None:
        """Queries, keys and values that a file has as one matrix, one below the other."""
        prefix = f"model.layers.{layer}"
        fused = self._tensors.get(f"{prefix}.attn_qkv.weight")
        if fused is None or len(fused.shape) != 2 or fused.shape[0] != query_rows + 2 * key_rows:
            return
        del self._tensors[f"{prefix}.attn_qkv.weight"]
        start, columns = fused.start, fused.shape[1]
        for part, rows in (("q", query_rows), ("k", key_rows), ("v", key_rows)):
            one = dataclasses.replace(fused, shape=(rows, columns), start=start)
            self._tensors[f"{prefix}.self_attn.{part}_proj.weight"] = one
            start += one.num_bytes

    def _share_head(self, layer: int) -> None:
        """An MTP layer without norm or head of its own uses the trunk's, as llama.cpp has it."""
        prefix = f"model.layers.{layer}"
        if f"{prefix}.eh_proj.weight" not in self._tensors:
            return
        for own, trunk in (("norm", "model.norm.weight"), ("output", "lm_head.weight")):
            if trunk in self._tensors:
                own_name = f"{prefix}.transformer.shared_head.{own}.weight"
                self._tensors.setdefault(own_name, self._tensors[trunk])


def _matrices(stack: _Stored) -> list[StoredMatrix]:
    """The matrices of a stack [n, rows, columns]."""
    rows, columns = stack.shape[1:]
    return [StoredMatrix(stack.name, stack.form, rows, columns, data) for data in stack.matrices().unbind(0)]


def _stored(name: str, tensor: GgufTensor, mapped: MappedFile) -> _Stored:
    file = mapped.file
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
    stored = _Stored(name, mapped, form, tensor.shape, file.data_offset + tensor.offset)
    end = stored.start + stored.num_bytes
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
    if form in PLAIN_DTYPES and stored.start % form.block_bytes:
        raise CheckpointError(
            f"{where} begins at byte {stored.start:,} of the file, expected a multiple of "
            f"{form.block_bytes} for type {type_name(tensor.type)}: convert the model again"
        )
    return stored


def _in_file(name: str) -> str:
    try:
        return gguf_name(name)
    except KeyError:
        return name
