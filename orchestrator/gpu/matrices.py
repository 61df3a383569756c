"""The head's matrices on a card, and their products with rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from workers.gpu.device import Stream
from workers.gpu.linear import GpuMatrix, GpuRows, linear
from workers.gpu.tiles import tiles

_TILES_FROM_ROWS = 9
"""The kernels for few rows read a matrix once for eight of them."""


@dataclass(frozen=True, slots=True)
class CardRows:
    """Rows on a card in the forms that matrices may want; of each only what was asked for is written.

    Attributes:
        x: float32 [rows, columns].
        by_256, by_32: rounded in blocks.
    """

    x: int
    by_256: GpuRows
    by_32: GpuRows

    def as_taken(self, rounding_block: int) -> GpuRows:
        """By a form that rounds in such blocks, 0 for one that does not round."""
        return {0: GpuRows(x=self.x), 256: self.by_256, 32: self.by_32}[rounding_block]


@dataclass(frozen=True, slots=True)
class CardMatrices:
    """Matrices of one width side by side; `rows`: of all together."""

    each: tuple[GpuMatrix, ...]
    rows: int
    columns: int

    @property
    def blocks(self) -> frozenset[int]:
        """What rows are rounded in for them; 0: rows as they are."""
        return frozenset(matrix.form.rounding_block for matrix in self.each)

    def product(self, stream: Stream, rows: CardRows, num_rows: int, out: int) -> None:
        """Ask for out float32 [num_rows, self.rows]: rows times each matrix transposed."""
        first = 0
        for matrix in self.each:
            block = matrix.form.rounding_block
            multiply = tiles if block and num_rows >= _TILES_FROM_ROWS else linear
            multiply(stream, matrix, rows.as_taken(block), out + 4 * first, num_rows, out_stride=self.rows)
            first += matrix.rows


def blocks_of(matrices: Iterable[CardMatrices]) -> frozenset[int]:
    """What rows are rounded in for all of them."""
    return frozenset(block for each in matrices for block in each.blocks)
