"""How long a pass takes by the number of its rows: what a server decides with before it has measured."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PassCosts:
    """Seconds of the parts of a step.

    More rows touch more experts, so a pass gets longer with every row, and the less the more rows it has.

    Attributes:
        rows: of the passes that are known, ascending from 1.
        pass_s: of a pass of the trunk with so many rows, the choice of tokens included.
        draft_s: of each MTP layer: (once a pass, for each row).

    Raises:
        ValueError: no pass, or one that takes no time.
    """

    rows: tuple[int, ...]
    pass_s: tuple[float, ...]
    draft_s: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        known = len(self.rows) == len(self.pass_s) > 0
        if not known or self.rows[0] != 1 or list(self.rows) != sorted(set(self.rows)):
            raise ValueError(
                f"passes of {self.rows} rows: expected one row, then ever more, each with a time"
            )
        if min(self.pass_s) <= 0:
            raise ValueError(f"passes of {self.pass_s} seconds: expected more than 0")

    def trunk_s(self, rows: float) -> float:
        """Of a pass of so many rows: a straight line between two known ones, and beyond the last two."""
        if len(self.rows) == 1:
            return self.pass_s[0]
        stop = min(max(1, bisect_left(self.rows, rows)), len(self.rows) - 1)
        low, high = self.rows[stop - 1], self.rows[stop]
        low_s, high_s = self.pass_s[stop - 1], self.pass_s[stop]
        return low_s + (high_s - low_s) * (max(rows, 1) - low) / (high - low)

    def drafting_s(self, depth: int, rows: float) -> float:
        """Of the first `depth` MTP layers, each with so many rows."""
        return sum(once_s + rows * row_s for once_s, row_s in self.draft_s[:depth])
