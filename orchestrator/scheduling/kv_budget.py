"""Memory for keys and values, and for rows that wait: what sequences of so many positions take of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from placement.kv_size import PASS_ROWS, SequenceSize


@dataclass(frozen=True, slots=True)
class KvBudget:
    """Pools of pages; a sequence takes some of each.

    Attributes:
        pools: (what a sequence takes, budget in bytes) of each, as `Step35Model.kv_sizes` gives them.
        pass_rows: of a pass, at most.
    """

    pools: tuple[tuple[SequenceSize, int], ...]
    pass_rows: int = PASS_ROWS

    def fits(self, positions: Iterable[int]) -> bool:
        """Whether sequences that hold so many positions each have room together."""
        return self.share(positions) <= 1

    def share(self, positions: Iterable[int]) -> float:
        """Of the pool that is fullest with these sequences: the part that they take."""
        held = list(positions)
        return max(
            (
                sum(size.num_bytes_in_any_passes(one, self.pass_rows) for one in held) / max(budget_bytes, 1)
                for size, budget_bytes in self.pools
            ),
            default=0.0,
        )

    def most_positions(self, context: int) -> int:
        """The most positions of one sequence alone, at most `context`."""
        low, high = 0, context
        while low < high:
            middle = (low + high + 1) // 2
            if self.fits([middle]):
                low = middle
            else:
                high = middle - 1
        return low
