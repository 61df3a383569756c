"""Memory for keys and values, and for rows that wait: what sequences of so many positions take of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from placement.kv_size import PAGE_POSITIONS, PASS_ROWS, SequenceSize, pages_of


@dataclass(frozen=True, slots=True)
class KvBudget:
    """Pools of pages; a sequence takes some of each.

    Attributes:
        pools: (what a sequence takes, budget in bytes) of each, as `Step35Model.kv_sizes` gives them.
        pass_rows: of a pass, at most.
    """

    pools: tuple[tuple[SequenceSize, int], ...]
    pass_rows: int = PASS_ROWS
    _known: dict[int, list[int]] = field(default_factory=dict, init=False, repr=False, compare=False)
    """By pages of a sequence: bytes in each pool. Every step asks for those of all sequences."""

    def fits(self, positions: Iterable[int]) -> bool:
        """Whether sequences that hold so many positions each have room together."""
        return self.share(positions) <= 1

    def share(self, positions: Iterable[int]) -> float:
        """Of the pool that is fullest with these sequences: the part that they take."""
        taken = map(sum, zip(*[self._num_bytes(pages_of(one)) for one in positions], strict=True))
        parts = (
            num_bytes / max(budget, 1) for num_bytes, (_, budget) in zip(taken, self.pools, strict=False)
        )
        return max(parts, default=0.0)

    def _num_bytes(self, pages: int) -> list[int]:
        found = self._known.get(pages)
        if found is None:
            num_positions = pages * PAGE_POSITIONS
            sizes = (size.num_bytes_in_any_passes(num_positions, self.pass_rows) for size, _ in self.pools)
            found = self._known[pages] = list(sizes)
        return found

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
