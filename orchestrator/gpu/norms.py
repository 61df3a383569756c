"""Sums, norms and the rounding to 8 bits: what lies between two matrices of the residual's path."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

from workers import fixed_point
from workers.gpu.device import Stream
from workers.gpu.linear import GpuRows

MOST_GRID_SUMS = 3


@dataclass(frozen=True, slots=True)
class GridSums:
    """Experts' sums on the rows' grids.

    Attributes:
        sums: int32 [rows, columns] each, 1 to 3 of them: one from each place that had experts.
        exponents: int32 [rows].
    """

    sums: tuple[int, ...]
    exponents: int


@dataclass(frozen=True, slots=True)
class CardNorm:
    """RMSNorm; `weight`: float32 [columns], to which 1 is added where `zero_centered`."""

    weight: int
    eps: float
    zero_centered: bool


@dataclass(frozen=True, slots=True)
class NormedOut:
    """Where normed rows go, in the forms that are wanted.

    Attributes:
        normed: float32, rows `normed_stride` numbers apart; 0: side by side.
        narrowed: float32 [rows, columns], rounded to bfloat16.
        by_256, by_32: rounded to 8 bits, from `narrowed` where that is wanted.
    """

    normed: int = 0
    normed_stride: int = 0
    narrowed: int = 0
    by_256: GpuRows | None = None
    by_32: GpuRows | None = None


class _RoundedOut(ctypes.Structure):
    _fields_ = (("q", ctypes.c_void_p), ("scales", ctypes.c_void_p), ("sums", ctypes.c_void_p))


class _NormRowsArgs(ctypes.Structure):
    _fields_ = (
        ("grid_sums", ctypes.c_void_p * MOST_GRID_SUMS),
        ("grid_exponents", ctypes.c_void_p),
        ("terms", ctypes.c_void_p * 2),
        ("total", ctypes.c_void_p),
        ("exponents", ctypes.c_void_p),
        ("broken", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("normed", ctypes.c_void_p),
        ("narrowed", ctypes.c_void_p),
        ("by_256", _RoundedOut),
        ("by_32", _RoundedOut),
        ("columns", ctypes.c_int64),
        ("normed_stride", ctypes.c_int64),
        ("eps", ctypes.c_float),
        ("weight_offset", ctypes.c_float),
        ("exponent_offset", ctypes.c_int32),
        ("least_exponent", ctypes.c_int32),
        ("most_exponent", ctypes.c_int32),
    )


def norm_rows(
    stream: Stream,
    num_rows: int,
    columns: int,
    terms: Sequence[int],
    *,
    grid: GridSums | None = None,
    total: int = 0,
    exponents: int = 0,
    broken: int = 0,
    norm: CardNorm | None = None,
    to: NormedOut = NormedOut(),
) -> None:
    """Add rows up, and norm the sum: ((the grid's integers in float32) + first term) + second term.

    Args:
        terms: float32 [rows, columns] each; one or two, or none beside a grid.
        total: float32 [rows, columns], the sum; may be one of the terms. Needed for more than one term.
        exponents: int32 [rows], of the grid for what is added to the sum (`fixed_point.scale_exponents`).
        broken: int32 [rows], 1 where the sum is not finite, else 0.
        norm: of the sum, written to `to`.

    Raises:
        ValueError: no sum can be formed so, or columns are not whole blocks.
    """
    sums = grid.sums if grid is not None else ()
    if (
        len(terms) > 2
        or not len(terms) + len(sums)
        or len(sums) > MOST_GRID_SUMS
        or (norm is not None and not total and (sums or len(terms) > 1))
    ):
        raise ValueError(f"norm_rows: {len(sums)} sums on grids, {len(terms)} terms, total at {total:#x}")
    for rounded, block in ((to.by_256, 256), (to.by_32, 32)):
        if rounded is not None and columns % block:
            raise ValueError(f"norm_rows: {columns} columns are no whole blocks of {block}")
    arguments = _NormRowsArgs(
        (ctypes.c_void_p * MOST_GRID_SUMS)(*sums),
        grid.exponents if grid is not None else 0,
        (ctypes.c_void_p * 2)(*terms),
        total,
        exponents,
        broken,
        norm.weight if norm is not None else 0,
        to.normed,
        to.narrowed,
        _rounded(to.by_256),
        _rounded(to.by_32),
        columns,
        to.normed_stride or columns,
        norm.eps if norm is not None else 0,
        1 if norm is not None and norm.zero_centered else 0,
        -fixed_point.GRID_BITS,
        fixed_point.MIN_EXPONENT,
        fixed_point.MAX_EXPONENT,
    )
    stream.launch("norm_rows", (num_rows, 1, 1), _threads(columns), arguments)


def _rounded(rows: GpuRows | None) -> _RoundedOut:
    return _RoundedOut() if rows is None else _RoundedOut(rows.q, rows.scales, rows.sums)


def _threads(columns: int) -> int:
    """Whole warps, so that each has eight numbers a thread where there are enough."""
    return min(512, max(1, -(-columns // 256)) * 32)
