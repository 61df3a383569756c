"""Products of rows and weight matrices on a card, in every form of the kernels' table."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from placement.weight_format import WeightFormat
from workers.gpu.device import MOST_GRID_Y_OR_Z, Stream

WARPS = 4
"""Of a thread block; `LINEAR_WARPS` in linear.h."""

_BLOCKS_EACH = 8
"""Thread blocks that a multiprocessor has at a time, at the least."""


class LinearArgs(ctypes.Structure):
    """As linear.h has it; null where a field is left out."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("q", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
        ("entry_rows", ctypes.c_void_p),
        ("num_groups", ctypes.c_void_p),
        ("group_starts", ctypes.c_void_p),
        ("group_slots", ctypes.c_void_p),
        ("matrices", ctypes.c_void_p),
        ("square_scales", ctypes.c_void_p),
        ("grid", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("out_stride", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("rows_out", ctypes.c_int64),
        ("row_bytes", ctypes.c_int64),
        ("entries", ctypes.c_int64),
    )


@dataclass(frozen=True, slots=True)
class GpuMatrix:
    """A matrix in a card's memory, or one of each of several experts. All fields but the shape are addresses.

    Attributes:
        rows, columns: of each.
        table: uint64 [slots]: where each matrix lies, at a multiple of 32 bytes.
        scale_table: of a form with `scale_tile`, uint64 [slots]: where its scales lie; else 0.
        grid: of a form that wants one, its magnitudes (`Grids`); else 0.
    """

    form: WeightFormat
    rows: int
    columns: int
    table: int
    scale_table: int = 0
    grid: int = 0


@dataclass(frozen=True, slots=True)
class GpuRows:
    """Rows in a card's memory, in what a matrix's form wants: addresses, 0 for what it does not.

    Attributes:
        x: float32 [rows, columns].
        q, scales, sums: rounded in the form's blocks: int8 [rows, columns], float32 [rows, columns / block],
            int16 [rows, columns / 16].
    """

    x: int = 0
    q: int = 0
    scales: int = 0
    sums: int = 0


@dataclass(frozen=True, slots=True)
class GpuGroups:
    """Which rows meet which matrix, in a card's memory; the card alone may know how many groups there are.

    Attributes:
        most: groups there can be at most.
        rows: int32 [entries]: the row that an entry is, or 0: entry e is row e.
        count: int32: groups there are.
        starts: int32 [groups + 1]: the first entry of each, then the number of entries.
        slots: int32 [groups]: the matrix of each.
    """

    most: int
    rows: int
    count: int
    starts: int
    slots: int


def linear(
    stream: Stream,
    matrix: GpuMatrix,
    rows: GpuRows,
    out: int,
    num_rows: int,
    *,
    groups: GpuGroups | None = None,
    out_stride: int | None = None,
) -> None:
    """Rows times each group's matrix transposed; without groups, rows times the matrix of slot 0.

    Args:
        out: float32 [entries, out_stride]: its address.
        num_rows: rows at most that a group has; without groups, how many there are.
        out_stride: numbers between an entry's outputs and the next one's; the matrix's rows where left out.
    """
    arguments = linear_arguments(matrix, rows, out, num_rows, groups, out_stride)
    kernel = f"linear_{matrix.form.name}" + ("_1" if num_rows == 1 else "")
    most = 1 if groups is None else groups.most
    if num_rows > 0:
        grid = _grid(matrix, num_rows, most, stream.device.facts.multiprocessors)
        stream.launch(kernel, grid, 32 * WARPS, arguments)


def linear_arguments(
    matrix: GpuMatrix,
    rows: GpuRows,
    out: int,
    num_rows: int,
    groups: GpuGroups | None,
    out_stride: int | None,
) -> LinearArgs:
    """What every kernel of products takes, from what `linear` takes."""
    arguments = LinearArgs(
        rows.x or None,
        rows.q or None,
        rows.scales or None,
        rows.sums or None,
        matrices=matrix.table,
        square_scales=matrix.scale_table or None,
        grid=matrix.grid or None,
        out=out,
        out_stride=matrix.rows if out_stride is None else out_stride,
        columns=matrix.columns,
        rows_out=matrix.rows,
        row_bytes=matrix.form.row_bytes(matrix.columns),
        entries=num_rows,
    )
    if groups is not None:
        arguments.entry_rows = groups.rows or None
        arguments.num_groups = groups.count
        arguments.group_starts = groups.starts
        arguments.group_slots = groups.slots
    return arguments


def _grid(matrix: GpuMatrix, num_rows: int, groups: int, multiprocessors: int) -> tuple[int, int, int]:
    """Thread blocks over rows of the matrix and groups.

    A warp takes one row of a quantised matrix for a single entry and two for more, and twice that of floats.
    Where that is more blocks than the card runs at a time, blocks take several shares, all the same number.
    """
    assert groups <= MOST_GRID_Y_OR_Z
    rows_each = WARPS * (1 if num_rows == 1 else 2) * (1 if matrix.form.rounding_block else 2)
    shares = -(-matrix.rows // rows_each)
    at_a_time = multiprocessors * _BLOCKS_EACH * 4
    turns = max(1, shares * groups // at_a_time)
    return -(-shares // turns), groups, 1
