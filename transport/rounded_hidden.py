"""Rows rounded to 8 bits on the wire, as quantised weights meet them (docs/arithmetic.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class RoundedPart(NamedTuple):
    """Rows in blocks of one width: q int8 [n, hidden_size], scales float32 [n, hidden_size / block]."""

    block: int
    q: NDArray[np.int8]
    scales: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class RoundedHidden:
    """The same rows in blocks of one or two widths, in ascending order of the widths; |q| is at most 127."""

    parts: tuple[RoundedPart, ...]

    @property
    def shape(self) -> tuple[int, int]:
        num_rows, hidden_size = self.parts[0].q.shape
        return num_rows, hidden_size

    @property
    def nbytes(self) -> int:
        return sum(part.q.nbytes + part.scales.nbytes for part in self.parts)

    def __len__(self) -> int:
        return len(self.parts[0].q)

    def __getitem__(self, places: NDArray[np.intp] | NDArray[np.bool_]) -> RoundedHidden:
        """Copies of some of the rows."""
        return RoundedHidden(
            tuple(RoundedPart(block, q[places], scales[places]) for block, q, scales in self.parts)
        )

    def tobytes(self) -> bytes:
        """Of each part q of all rows, then the scales of all rows."""
        return b"".join(part.q.tobytes() + part.scales.tobytes() for part in self.parts)

    @classmethod
    def from_buffer(
        cls, buffer: bytes | memoryview | bytearray, blocks: tuple[int, ...], num_rows: int, hidden_size: int
    ) -> RoundedHidden:
        """What `tobytes` wrote: views of the buffer, copies where it lies at an odd address."""
        parts, start = [], 0
        for block in blocks:
            q: NDArray[np.int8] = np.ndarray((num_rows, hidden_size), np.int8, buffer, start)
            start += q.nbytes
            shape = (num_rows, hidden_size // block)
            scales: NDArray[np.float32] = np.ndarray(shape, np.dtype("<f4"), buffer, start)
            start += scales.nbytes
            parts.append(RoundedPart(block, q, scales if scales.flags.aligned else scales.copy()))
        return cls(tuple(parts))
