"""Tensors of a GGUF model by their published names, memory-mapped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from placement.errors import CheckpointError
from placement.weight_format import ExpertFormat
from workers.formats.checkpoint import Expert, StoredMatrix
from workers.formats.contents import ModelContents, gguf_contents
from workers.formats.dequantise import float32_values
from workers.formats.gguf.mapped_file import MappedFile
from workers.formats.gguf.model import GgufModel
from workers.formats.gguf.names import gguf_name, layer_of
from workers.formats.gguf.tensors import GgufWeights, weights_of
from workers.kernels.matrix import TORCH_DTYPES
from workers.model_config import Step35Config

# gate and up [intermediate, hidden], down [hidden, intermediate].
_PARTS = ("gate_proj", "up_proj", "down_proj")


class GgufCheckpoint:
    """A model in GGUF files: only what is asked for is read.

    `stored`: by the published name, the name in the files.
    """

    def __init__(self, model: GgufModel) -> None:
        """Check that all tensors load.

        Raises:
            CheckpointError: a tensor of a type that does not load, of broken rows, or outside its file.
        """
        self.path: Path = model.parts.path
        self.notes: Sequence[str] = model.notes
        self.metadata: Mapping[str, Any] = model.parts.metadata
        self._model = model
        self._weights = weights_of(model.parts.tensors, model.config)
        self._mtp_path = model.mtp_path
        self._num_trunk = model.config.num_hidden_layers
        self.stored: Mapping[str, str] = {name: found.name for name, found in self._weights.items()}
        files = {placed.file.path: placed.file for placed in model.parts.tensors.values()}
        self._mapped = {path: MappedFile(file) for path, file in files.items()}
        self._experts_of_layer: tuple[int, list[Expert]] | None = None

    def contents(self, config: Step35Config) -> ModelContents:
        """See `Checkpoint.contents`."""
        return gguf_contents(self._weights, self._model)

    def has(self, name: str) -> bool:
        """Whether the tensor exists."""
        return name in self._weights

    def has_below(self, prefix: str) -> bool:
        """Whether any tensor's name starts so."""
        return any(name.startswith(prefix) for name in self._weights)

    def file_of(self, name: str) -> Path:
        """See `Checkpoint.file_of`."""
        where = self._weights.get(name)
        if where is not None:
            return where.file.path
        if self._mtp_path is not None and layer_of(name) >= self._num_trunk:
            return self._mtp_path
        return self.path

    def name_in_files(self, name: str) -> str:
        """See `Checkpoint.name_in_files`."""
        where = self._weights.get(name)
        if where is not None:
            return where.name
        try:
            return gguf_name(name)
        except KeyError:
            return name

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        """A copy of one whole tensor in `dtype`: exact in float32, rounded to even where `dtype` is narrower.

        Raises:
            CheckpointError: no such tensor.
        """
        where = self._where(name)
        values = float32_values(self._bytes(where), where.form)
        return torch.empty(where.shape, dtype=dtype).copy_(values.view(where.shape))

    def matrix(self, name: str) -> StoredMatrix:
        """See `Checkpoint.matrix`."""
        where = self._where(name)
        if len(where.shape) != 2:
            raise CheckpointError(
                f"{where.file.path}: tensor {where.name} has shape {list(where.shape)}, expected a matrix: "
                "the metadata and the weights belong to different models"
            )
        rows, columns = where.shape
        return StoredMatrix(where.name, where.form, rows, columns, self._data(where))

    def expert_format(self, layer: int, config: Step35Config) -> ExpertFormat:
        """See `Checkpoint.expert_format`."""
        return ExpertFormat(*(self._experts(layer, part, config).form for part in _PARTS))

    def expert(self, layer: int, expert: int, config: Step35Config) -> Expert:
        """See `Checkpoint.expert`."""
        # Threads may ask for different layers at once.
        found = self._experts_of_layer
        if found is None or found[0] != layer:
            stacks = [self._matrices(self._experts(layer, part, config)) for part in _PARTS]
            found = self._experts_of_layer = layer, list(zip(*stacks, strict=True))
        return found[1][expert]

    def check_unchanged(self) -> None:
        """See `Checkpoint.check_unchanged`."""
        for file in self._mapped.values():
            file.check_unchanged()

    def release(self) -> None:
        """See `Checkpoint.release`."""
        self._experts_of_layer = None
        for file in self._mapped.values():
            file.release()

    def _where(self, name: str) -> GgufWeights:
        where = self._weights.get(name)
        if where is None:
            raise CheckpointError(
                f"{self.file_of(name)}: expected a tensor {self.name_in_files(name)}, found none: check that "
                "the file was downloaded completely"
            )
        return where

    def _experts(self, layer: int, part: str, config: Step35Config) -> GgufWeights:
        where = self._where(f"model.layers.{layer}.moe.{part}.weight")
        hidden, inner = config.hidden_size, config.moe_intermediate_size
        matrix = (hidden, inner) if part == "down_proj" else (inner, hidden)
        expected = (config.moe_num_experts, *matrix)
        if where.shape != expected:
            raise CheckpointError(
                f"{where.file.path}: tensor {where.name} has shape {list(where.shape)}, expected "
                f"{list(expected)}: the metadata and the weights belong to different models"
            )
        return where

    def _bytes(self, weights: GgufWeights) -> Tensor:
        return self._mapped[weights.file.path].view(weights.start, weights.num_bytes)

    def _data(self, weights: GgufWeights) -> Tensor:
        """[..., rows, columns] in the form's dtype, or uint8 [..., rows, bytes of a row]."""
        data = self._bytes(weights)
        if weights.form in TORCH_DTYPES:
            return data.view(TORCH_DTYPES[weights.form]).view(weights.shape)
        return data.view(*weights.shape[:-1], -1)

    def _matrices(self, stack: GgufWeights) -> list[StoredMatrix]:
        """The matrices of a stack [n, rows, columns]."""
        rows, columns = stack.shape[1:]
        return [
            StoredMatrix(stack.name, stack.form, rows, columns, data) for data in self._data(stack).unbind(0)
        ]
