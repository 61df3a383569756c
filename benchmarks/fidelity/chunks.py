"""Requests of many rows, as a prompt makes them: seconds for each distinct expert and for each pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.fidelity.clocks import mean
from benchmarks.fidelity.rows import CHUNK_ROWS

CHUNK_SIZES = (CHUNK_ROWS // 4, CHUNK_ROWS)
"""Rows before those that need nothing of the process are left out."""
_LEAST_S = 1e-9


class Chunks:
    """Requests of one size: the seconds of each, and over all of them the distinct experts and the pairs."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._distinct = self._pairs = 0.0

    def add(self, seconds: float, distinct: float, pairs: float) -> None:
        self.seconds.append(seconds)
        self._distinct += distinct
        self._pairs += pairs

    def means(self) -> tuple[float, float, float]:
        """Seconds, distinct experts and pairs of a request."""
        count = len(self.seconds)
        return mean(self.seconds), self._distinct / count, self._pairs / count


@dataclass(frozen=True, slots=True)
class ChunkRates:
    """Seconds for each distinct expert and for each (row, expert) pair."""

    expert_s: float
    pair_s: float


def chunk_rates(sizes: Sequence[Chunks], request_s: float) -> ChunkRates:
    """The rates that explain requests of two sizes, each `request_s` longer; no expert's is below 0."""
    (few_s, few_distinct, few_pairs), (many_s, many_distinct, many_pairs) = (size.means() for size in sizes)
    few_s, many_s = max(0.0, few_s - request_s), max(0.0, many_s - request_s)
    determinant = few_distinct * many_pairs - many_distinct * few_pairs
    expert_s = max(0.0, (few_s * many_pairs - many_s * few_pairs) / determinant)
    return ChunkRates(expert_s, max(_LEAST_S, many_s - many_distinct * expert_s) / many_pairs)
