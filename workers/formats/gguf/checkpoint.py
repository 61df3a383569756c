"""Tensors of a GGUF file by their published names, memory-mapped."""

from __future__ import annotations

import math
import mmap
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from placement.errors import CheckpointError
from placement.files.gguf_file import GgufFile, GgufTensor
from placement.files.input_file import open_input
from placement.files.quote import quote
from placement.weight_format import ExpertFormat, WeightFormat
from workers.formats.checkpoint import StoredMatrix
from workers.formats.gguf.names import gguf_name, published_name
from workers.formats.gguf.types import READABLE, READABLE_NAMES, float32_values, type_name
from workers.model_config import Step35Config

# gate and up [intermediate, hidden], down [hidden, intermediate].
_PARTS = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class _Stored:
    """Where a tensor lies: whole blocks of `form` from byte `start` of the file."""

    name: str
    form: WeightFormat
    shape: tuple[int, ...]
    start: int
    num_bytes: int


class GgufCheckpoint:
    """A model in one GGUF file: only what is asked for is read.

    `stored`: by the published name, the name in the file.
    """

    def __init__(self, file: GgufFile) -> None:
        """Use `open`.

        Raises:
            CheckpointError: a tensor of a type that does not load, of broken rows, or outside the file.
        """
        self.path = file.path
        self._num_bytes = file.num_bytes
        self._tensors = {
            published_name(name): _where(file, name, tensor) for name, tensor in file.tensors.items()
        }
        self.stored: Mapping[str, str] = {name: where.name for name, where in self._tensors.items()}
        self._map: mmap.mmap | None = None

    @classmethod
    def open(cls, path: str | Path) -> GgufCheckpoint:
        """Read a file's header and check that all tensors load.

        Raises:
            CheckpointError: no such file, not GGUF, damaged, or a tensor that does not load; names it.
        """
        return cls(GgufFile.open(path, CheckpointError))

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
        values = float32_values(self._bytes(where.start, where.num_bytes), where.form)
        return torch.empty(where.shape, dtype=dtype).copy_(_tensor_of(values).view(where.shape))

    def expert_format(self, layer: int, config: Step35Config) -> ExpertFormat:
        """See `Checkpoint.expert_format`."""
        return ExpertFormat(*(self._experts(layer, part, config).form for part in _PARTS))

    def expert(
        self, layer: int, expert: int, config: Step35Config
    ) -> tuple[StoredMatrix, StoredMatrix, StoredMatrix]:
        """See `Checkpoint.expert`."""
        gate, up, down = (self._expert_matrix(layer, expert, part, config) for part in _PARTS)
        return gate, up, down

    def release(self) -> None:
        """Unmap the file. Reading maps it again; what was read so far stops counting as memory."""
        self._map = None

    def _where(self, name: str) -> _Stored:
        where = self._tensors.get(name)
        if where is None:
            raise CheckpointError(
                f"{self.path}: expected a tensor {_in_file(name)}, found none: check that the file was "
                "downloaded completely, and that it is not a part of a split model"
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

    def _expert_matrix(self, layer: int, expert: int, part: str, config: Step35Config) -> StoredMatrix:
        where = self._experts(layer, part, config)
        rows, columns = where.shape[1:]
        num_bytes = where.form.matrix_bytes(rows, columns)
        data = _tensor_of(self._bytes(where.start + expert * num_bytes, num_bytes)).view(rows, -1)
        if where.form.block_weights == 1:
            data = data.view(getattr(torch, where.form.name))
        return StoredMatrix(where.name, where.form, rows, columns, data)

    def _bytes(self, start: int, count: int) -> NDArray[np.uint8]:
        """A view of the file."""
        if self._map is None:
            with open_input(self.path, CheckpointError, "a GGUF file") as file:
                if os.fstat(file.fileno()).st_size != self._num_bytes:
                    raise CheckpointError(
                        f"{self.path}: it was {self._num_bytes:,} bytes long when it was opened, and is "
                        "not any more; expected that nobody writes to a model in use"
                    )
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return np.frombuffer(self._map, np.uint8, count, start)


def _where(file: GgufFile, name: str, tensor: GgufTensor) -> _Stored:
    where = f"{file.path}: tensor {quote(name)}"
    form = READABLE.get(tensor.type)
    if form is None:
        raise CheckpointError(
            f"{where} is stored as {type_name(tensor.type)}, expected one of {READABLE_NAMES}: use a file "
            "quantised to Q8_0 or not at all"
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
    start = file.data_offset + tensor.offset
    num_bytes = math.prod(tensor.shape[:-1]) * form.row_bytes(columns)
    if start + num_bytes > file.num_bytes:
        raise CheckpointError(
            f"{where} ends at byte {start + num_bytes:,}, but the file has {file.num_bytes:,}: it is "
            "truncated, download it again"
        )
    if tensor.offset % file.alignment:
        raise CheckpointError(
            f"{where} begins at byte {tensor.offset:,} of the data, expected a multiple of "
            f"general.alignment, {file.alignment}: the file is damaged, download it again"
        )
    return _Stored(name, form, tensor.shape, start, num_bytes)


def _in_file(name: str) -> str:
    try:
        return gguf_name(name)
    except KeyError:
        return name


def _tensor_of(array: NDArray[np.generic]) -> Tensor:
    """A tensor over a read-only array; nobody writes to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
