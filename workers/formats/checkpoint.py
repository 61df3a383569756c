"""What the head and the workers ask of a model's files, whatever format those are in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from placement.weight_format import ExpertFormat, WeightFormat
from workers.model_config import Step35Config

if TYPE_CHECKING:
    from workers.formats.contents import ModelContents


@dataclass(frozen=True, slots=True, eq=False)
class StoredMatrix:
    """One matrix as it lies in a file.

    Attributes:
        name: of the tensor in the file, for messages.
        data: [rows, columns] in the torch dtype of the form's name where that is float32, bfloat16 or
            float16; else uint8 [rows, bytes of a row]. A contiguous view of the mapped file, which stays
            mapped as long as the view lives.
        scales: float32 [ceil(rows / 128), ceil(columns / 128)] for fp8_e4m3, whose weights they multiply.
    """

    name: str
    form: WeightFormat
    rows: int
    columns: int
    data: Tensor
    scales: Tensor | None = None


Expert = tuple[StoredMatrix, StoredMatrix, StoredMatrix]
"""Gate [I, H], up [I, H] and down [H, I]."""


class Checkpoint(Protocol):
    """A model's files. Tensors go by the names of the published checkpoint, such as "model.norm.weight"."""

    @property
    def path(self) -> Path:
        """The model's directory or file, for messages."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """What to tell the user of the files, one line each, such as where MTP layers were found."""
        ...

    @property
    def stored(self) -> Mapping[str, str]:
        """Published name of each tensor -> its name in the files."""
        ...

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What a GGUF file says beside its tensors, such as its tokenizer; empty for a directory."""
        ...

    def contents(self, config: Step35Config) -> ModelContents:
        """All tensors with their types and bytes; only the headers are looked at.

        Raises:
            CheckpointError: one is of a type that does not load.
        """
        ...

    def has(self, name: str) -> bool:
        """Whether the tensor exists."""
        ...

    def has_below(self, prefix: str) -> bool:
        """Whether any tensor's name starts so."""
        ...

    def file_of(self, name: str) -> Path:
        """The file that a tensor is in, or would be in if it were there, for messages."""
        ...

    def name_in_files(self, name: str) -> str:
        """What the files call a tensor, or would call it if it were there, for messages."""
        ...

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        """A copy of one whole tensor in `dtype`, float32 or bfloat16.

        Raises:
            CheckpointError: no such tensor, or it is stored in a form that cannot be read.
        """
        ...

    def matrix(self, name: str) -> StoredMatrix:
        """One whole matrix as it is stored, without a copy.

        Raises:
            CheckpointError: no such tensor, no matrix, or in a form that cannot be read.
        """
        ...

    def expert_format(self, layer: int, config: Step35Config) -> ExpertFormat:
        """The forms that a layer's routed experts are stored in.

        Raises:
            CheckpointError: a matrix is missing, or in a form that cannot be read.
        """
        ...

    def expert(self, layer: int, expert: int, config: Step35Config) -> Expert:
        """One routed expert's gate, up and down, without a copy.

        Ask layer by layer: the experts of the layer asked last are at hand.

        Raises:
            CheckpointError: a matrix is missing, in a form that cannot be read, or not of the
                configuration's shape.
        """
        ...

    def check_unchanged(self) -> None:
        """See that the files that weights were asked of are still those that were opened.

        Raises:
            ModelFilesFailed: one was replaced, written to or removed; names it.
        """
        ...

    def release(self) -> None:
        """Let go of the mapped files; they are unmapped once no view of them is left.

        Reading maps them again, after `check_unchanged`.
        """
        ...
