"""What the head and the workers ask of a model's files, whatever format those are in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from placement.weight_format import ExpertFormat, WeightFormat
from workers.model_config import Step35Config


@dataclass(frozen=True, slots=True, eq=False)
class StoredMatrix:
    """One matrix of one expert as it lies in a file.

    Attributes:
        name: of the tensor in the file, for messages.
        data: [rows, columns] in the torch dtype of the form's name; for forms in blocks uint8
            [rows, bytes of a row]. A view of the mapped file: copy what is to stay.
    """

    name: str
    form: WeightFormat
    rows: int
    columns: int
    data: Tensor


class Checkpoint(Protocol):
    """A model's files. Tensors go by the names of the published checkpoint, such as "model.norm.weight"."""

    @property
    def path(self) -> Path:
        """The model's directory or file, for messages."""
        ...

    @property
    def stored(self) -> Mapping[str, str]:
        """Published name of each tensor -> its name in the files."""
        ...

    def has(self, name: str) -> bool:
        """Whether the tensor exists."""
        ...

    def has_below(self, prefix: str) -> bool:
        """Whether any tensor's name starts so."""
        ...

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        """A copy of one whole tensor in `dtype`, float32 or bfloat16.

        Raises:
            CheckpointError: no such tensor, or it is stored in a form that cannot be read.
        """
        ...

    def expert_format(self, layer: int, config: Step35Config) -> ExpertFormat:
        """The forms that a layer's routed experts are stored in.

        Raises:
            CheckpointError: a matrix is missing, or in a form that cannot be read.
        """
        ...

    def expert(
        self, layer: int, expert: int, config: Step35Config
    ) -> tuple[StoredMatrix, StoredMatrix, StoredMatrix]:
        """One routed expert's gate [I, H], up [I, H] and down [H, I]; drop the views before `release`.

        Raises:
            CheckpointError: a matrix is missing, in a form that cannot be read, or not of the
                configuration's shape.
        """
        ...

    def release(self) -> None:
        """Unmap the files. Reading maps them again; what was read so far stops counting as memory."""
        ...
