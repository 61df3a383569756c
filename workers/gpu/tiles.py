"""Products of many rows and quantised weight matrices on a card's tensor cores: what prompts run through."""

from __future__ import annotations

from workers.gpu.device import MOST_GRID_Y_OR_Z, Stream
from workers.gpu.linear import GpuGroups, GpuMatrix, GpuRows, linear_arguments

TILE_ROWS, TILE_ENTRIES, TILE_THREADS = 64, 32, 256
"""Rows of weights and entries that a thread block takes at a time, and its threads; tiles.h has them too."""

_MOST_MATRIX_BYTES = 1 << 32


def tiles(
    stream: Stream,
    matrix: GpuMatrix,
    rows: GpuRows,
    out: int,
    num_rows: int,
    *,
    groups: GpuGroups | None = None,
    out_stride: int | None = None,
) -> None:
    """As `workers.gpu.linear.linear`, with the same bits, for a quantised matrix and many rows a group.

    Args:
        out: float32 [entries, out_stride]: its address.
        num_rows: rows of most groups; a group may have more, and its thread blocks then take several turns.
            Without groups, how many rows there are.
        out_stride: numbers between an entry's outputs and the next one's; the matrix's rows where left out.
    """
    arguments = linear_arguments(matrix, rows, out, num_rows, groups, out_stride)
    grid = (
        -(-num_rows // TILE_ENTRIES),
        -(-matrix.rows // TILE_ROWS),
        1 if groups is None else groups.most,
    )
    assert max(grid[1:]) <= MOST_GRID_Y_OR_Z
    assert arguments.rows_out * arguments.row_bytes < _MOST_MATRIX_BYTES
    stream.launch(f"tiles_{matrix.form.name}", grid, TILE_THREADS, arguments)
