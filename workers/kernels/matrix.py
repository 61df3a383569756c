"""One weight matrix as the kernels read it, wherever it lies, in any form of the kernels' table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from placement.weight_format import BFLOAT16, FLOAT16, FLOAT32, WeightFormat
from workers.kernels import native
from workers.kernels.native import WeightMatrixArgs, check
from workers.kernels.tables import load_tables

TORCH_DTYPES = {FLOAT32: torch.float32, BFLOAT16: torch.bfloat16, FLOAT16: torch.float16}
"""Of the forms that torch has a dtype for; the others are bytes."""

MOST_SIDE_BY_SIDE = 8


@dataclass(frozen=True, slots=True, eq=False)
class Matrix:
    """One matrix [rows, columns] on the CPU: a view of a mapped file, a cache's slot, or own memory.

    Attributes:
        data: contiguous: [rows, columns] in the form's torch dtype, else uint8 [rows, bytes of a row].
        scales: of a form with `scale_tile` t: float32 [ceil(rows / t), ceil(columns / t)]; else None.

    Raises:
        ValueError: data or scales of another shape or dtype, a form that the kernels do not compute with.
        InputError: a row is no whole number of blocks.
    """

    form: WeightFormat
    rows: int
    columns: int
    data: Tensor
    scales: Tensor | None = None
    arguments: WeightMatrixArgs = field(init=False)

    def __post_init__(self) -> None:
        dtype, width = row_of(self.form, self.columns)
        if self.data.shape != (self.rows, width) or self.data.dtype is not dtype:
            raise ValueError(
                f"a matrix in {self.form.name}: expected {dtype} [{self.rows}, {width}], found "
                f"{self.data.dtype} {list(self.data.shape)}"
            )
        check_scales(self.form, self.rows, self.columns, self.scales)
        arguments = WeightMatrixArgs(
            data=check(self.data, dtype).data_ptr(),
            scales=None if self.scales is None else self.scales.data_ptr(),
            rows=self.rows,
            columns=self.columns,
            row_bytes=self.form.row_bytes(self.columns),
            format=format_index(self.form),
        )
        object.__setattr__(self, "arguments", arguments)

    @classmethod
    def of(cls, data: Tensor) -> Matrix:
        """From a tensor [rows, columns] in a dtype that is a form of its own."""
        return cls(form_of(data), data.shape[0], data.shape[1], data)


@dataclass(frozen=True, slots=True, eq=False)
class Matrices:
    """Matrices of equal width that multiply the same rows in one call. `rows`: of all together.

    Raises:
        ValueError: none, more than MOST_SIDE_BY_SIDE, or of different widths.
    """

    each: tuple[Matrix, ...]
    rows: int = field(init=False)
    columns: int = field(init=False)
    arguments: Any = field(init=False)

    def __post_init__(self) -> None:
        widths = {matrix.columns for matrix in self.each}
        if not 1 <= len(self.each) <= MOST_SIDE_BY_SIDE or len(widths) != 1:
            shapes = [(matrix.rows, matrix.columns) for matrix in self.each]
            raise ValueError(
                f"matrices side by side: expected 1 to {MOST_SIDE_BY_SIDE} of one width, {shapes}"
            )
        object.__setattr__(self, "rows", sum(matrix.rows for matrix in self.each))
        object.__setattr__(self, "columns", self.each[0].columns)
        arguments = (WeightMatrixArgs * len(self.each))(*(matrix.arguments for matrix in self.each))
        object.__setattr__(self, "arguments", arguments)

    @classmethod
    def of(cls, *each: Matrix | Tensor) -> Matrices:
        """From matrices, or tensors in a dtype that is a form of its own."""
        return cls(tuple(matrix if isinstance(matrix, Matrix) else Matrix.of(matrix) for matrix in each))


def form_of(data: Tensor) -> WeightFormat:
    """Raises ValueError for a dtype that is no form."""
    for form, dtype in TORCH_DTYPES.items():
        if dtype is data.dtype:
            return form
    raise ValueError(f"kernel weights: expected float32, bfloat16 or float16, found {data.dtype}")


def row_of(form: WeightFormat, columns: int) -> tuple[torch.dtype, int]:
    """A row's dtype and number of elements. Raises InputError where it is no whole number of blocks."""
    dtype = TORCH_DTYPES.get(form)
    return (torch.uint8, form.row_bytes(columns)) if dtype is None else (dtype, columns)


def format_index(form: WeightFormat) -> int:
    """The form's row in the kernels' table.

    Raises:
        ValueError: the kernels do not compute with it.
    """
    load_tables()
    index: int = native.format_index(form.name.encode(), form.block_weights, form.block_bytes)
    if index < 0:
        raise ValueError(f"the kernels do not compute with weights in {form.name}")
    return index


def check_scales(form: WeightFormat, rows: int, columns: int, scales: Tensor | None) -> None:
    """Raises ValueError for scales that are missing, of another shape, or not of this form."""
    tile = form.scale_tile
    expected: Sequence[int] | None = [-(-rows // tile), -(-columns // tile)] if tile else None
    found = None if scales is None else list(scales.shape)
    if found != expected:
        raise ValueError(f"scales of a matrix in {form.name}: expected {expected}, found {found}")
    if scales is not None:
        check(scales)
