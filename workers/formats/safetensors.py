"""A Hugging Face model directory: one safetensors file or several with an index, memory-mapped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from placement.errors import CheckpointError
from placement.weight_format import FP8_E4M3, ExpertFormat, WeightFormat
from workers.formats.checkpoint import Expert, StoredMatrix
from workers.formats.contents import ModelContents, directory_contents
from workers.formats.dequantise import float32_matrix
from workers.formats.shards import (
    FORMS,
    READABLE,
    Shard,
    check_scale,
    find_shards,
    published_names,
)
from workers.model_config import Step35Config


class SafetensorsCheckpoint:
    """Tensors by their published names, memory-mapped: only what is asked for is read.

    `stored`: by that name, the name in the files. Scales of FP8 weights belong to those and are not listed.
    """

    notes: Sequence[str] = ()
    metadata: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, path: Path, files: Mapping[str, Shard]) -> None:
        """`files`: stored name of each tensor -> the file it is in.

        Raises:
            CheckpointError: the weights are quantised in a way that does not load; names a tensor.
        """
        self.path = path
        self._files = dict(files)
        self.stored, self._scales = published_names(files)
        self._experts_of_layer: tuple[int, list[Expert]] | None = None

    @classmethod
    def open(cls, model_dir: str | Path) -> SafetensorsCheckpoint:
        """Find a model's files; see `find_shards`.

        Raises:
            CheckpointError: as `find_shards`, or the weights are quantised in a way that does not load.
        """
        return cls(Path(model_dir), find_shards(Path(model_dir)))

    def contents(self, config: Step35Config) -> ModelContents:
        """See `Checkpoint.contents`."""
        return directory_contents(self._files, config)

    def has(self, name: str) -> bool:
        """Whether the tensor exists."""
        return name in self.stored

    def has_below(self, prefix: str) -> bool:
        """Whether any tensor's name starts so."""
        return any(name.startswith(prefix) for name in self.stored)

    def file_of(self, name: str) -> Path:
        """See `Checkpoint.file_of`; the directory for a tensor that is not there."""
        stored = self.stored.get(name)
        return self.path if stored is None else self._files[stored].path

    def name_in_files(self, name: str) -> str:
        """See `Checkpoint.name_in_files`."""
        return self.stored.get(name, name)

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        """A copy of one whole tensor in `dtype`.

        Raises:
            CheckpointError: no such tensor, or it is stored in a type that cannot be read.
        """
        view, form = self._view(name)
        values = torch.empty(view.shape, dtype=dtype)
        if form != FP8_E4M3:
            return values.copy_(view)
        stack = view if view.ndim > 2 else view[None]
        scales = self._scales_of(name).view(len(stack), -1, -(-view.shape[-1] // 128))
        for to, data, own in zip(values.view(stack.shape), stack, scales, strict=True):
            rows, columns = data.shape
            to.copy_(float32_matrix(StoredMatrix(name, form, rows, columns, data, own)))
        return values

    def matrix(self, name: str) -> StoredMatrix:
        """See `Checkpoint.matrix`."""
        view, form = self._view(name)
        if view.ndim != 2:
            raise CheckpointError(
                f"{self.path}: tensor {self.stored[name]} has shape {list(view.shape)}, expected a matrix: "
                "config.json and the weights belong to different models"
            )
        scales = self._scales_of(name) if form == FP8_E4M3 else None
        rows, columns = view.shape
        return StoredMatrix(self.stored[name], form, rows, columns, view, scales)

    def expert_format(self, layer: int, config: Step35Config) -> ExpertFormat:
        """See `Checkpoint.expert_format`; the first expert stands for all, `expert` tells each one's own."""
        gate, up, down = self.expert(layer, 0, config)
        return ExpertFormat(gate.form, up.form, down.form)

    def expert(self, layer: int, expert: int, config: Step35Config) -> Expert:
        """See `Checkpoint.expert`."""
        # Threads may ask for different layers at once.
        known = self._experts_of_layer
        if known is not None and known[0] == layer:
            return known[1][expert]
        hidden, inner = config.hidden_size, config.moe_intermediate_size
        shapes = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
        if not any(self.has(_stacked(layer, part)) for part in shapes):
            gate, up, down = (self._single(layer, expert, part, shape) for part, shape in shapes.items())
            return gate, up, down
        stacks = []
        for part, shape in shapes.items():
            name = _stacked(layer, part)
            view, form = self._view(name)
            self._check_shape(name, view, (config.moe_num_experts, *shape))
            stacks.append(self._matrices(name, view, form))
        known = self._experts_of_layer = layer, list(zip(*stacks, strict=True))
        return known[1][expert]

    def check_unchanged(self) -> None:
        """See `Checkpoint.check_unchanged`."""
        for shard in set(self._files.values()):
            shard.check_unchanged()

    def release(self) -> None:
        """See `Checkpoint.release`."""
        self._experts_of_layer = None
        for shard in set(self._files.values()):
            shard.release()

    def _view(self, name: str) -> tuple[Tensor, WeightFormat]:
        """A whole tensor without a copy: bytes where it is FP8; and its form."""
        stored = self.stored.get(name)
        if stored is None:
            raise CheckpointError(
                f"{self.path} has no tensor {name}: check that all of the model's files were downloaded "
                "and that config.json belongs to them"
            )
        shard = self._files[stored]
        form = FORMS.get(shard.type_of(stored))
        if form is None:
            raise CheckpointError(
                f"{shard.path}: tensor {stored} is stored as {shard.type_of(stored)}, expected {READABLE}"
            )
        view = shard.tensor(stored)
        return (view.view(torch.uint8) if form == FP8_E4M3 else view), form

    def _scales_of(self, name: str) -> Tensor:
        """float32 [..., ceil(rows / 128), ceil(columns / 128)] of an FP8 tensor."""
        stored = self._scales.get(name)
        check_scale(self.path, self._files, self.stored[name], stored)
        assert stored is not None
        return self._files[stored].tensor(stored)

    def _matrices(self, name: str, stack: Tensor, form: WeightFormat) -> list[StoredMatrix]:
        """The matrices of a stack [n, rows, columns]."""
        num, rows, columns = stack.shape
        scales: Sequence[Tensor | None] = [None] * num
        if form == FP8_E4M3:
            scales = self._scales_of(name).unbind(0)
        return [
            StoredMatrix(self.stored[name], form, rows, columns, data, own)
            for data, own in zip(stack.unbind(0), scales, strict=True)
        ]

    def _single(self, layer: int, expert: int, part: str, shape: tuple[int, int]) -> StoredMatrix:
        """Of an expert whose matrices are tensors of their own."""
        prefix = f"model.layers.{layer}.moe"
        for name in (f"{prefix}.experts.{expert}.{part}.weight", f"{prefix}.{expert}.{part}.weight"):
            if self.has(name):
                matrix = self.matrix(name)
                self._check_shape(name, matrix.data, shape)
                return matrix
        raise CheckpointError(
            f"{self.path} has no {part} of expert {expert} of layer {layer}: expected tensor "
            f"{_stacked(layer, part)}, or one tensor an expert; check that all of the model's files were "
            "downloaded"
        )

    def _check_shape(self, name: str, found: Tensor, expected: tuple[int, ...]) -> None:
        if tuple(found.shape) != expected:
            raise CheckpointError(
                f"{self.path}: tensor {self.stored[name]} has shape {list(found.shape)}, expected "
                f"{list(expected)}: config.json and the weights belong to different models"
            )


def _stacked(layer: int, part: str) -> str:
    """The name of a matrix of all experts of a layer in one tensor."""
    return f"model.layers.{layer}.moe.{part}.weight"
