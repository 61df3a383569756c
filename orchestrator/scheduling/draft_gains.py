"""Expected tokens of drafts: each gains the product of the chances up to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul


@dataclass(frozen=True, slots=True)
class DraftGains:
    """Expected tokens of drafts. `by_place`: sequence -> of its first draft, of its second, ..."""

    by_place: Mapping[int, list[float]]

    @classmethod
    def of(cls, chances: Mapping[int, Sequence[float]]) -> DraftGains:
        """From each draft's chance to hold if those before it do."""
        return cls({sequence: list(accumulate(own, mul)) for sequence, own in chances.items()})

    def upto(self, most: Mapping[int, int]) -> DraftGains:
        """These sequences have no more drafts than that."""
        if not most:
            return self
        return DraftGains({n: of[: most[n]] if n in most else of for n, of in self.by_place.items()})

    def tokens(self, depths: Mapping[int, int]) -> float:
        """Expected of a step."""
        return sum(1 + sum(self.by_place[sequence][:depth]) for sequence, depth in depths.items())
