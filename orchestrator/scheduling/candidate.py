"""A sequence that may be drafted for, and the rows that MTP layers must take in first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile, zip_longest
from typing import NamedTuple

_USUAL_ROWS = 8
"""Rows that wait for an MTP layer where it drafts in every step, at most."""


class Candidate(NamedTuple):
    """A sequence that is decoded.

    Attributes:
        most: drafts that could still become its output.
        behind: rows that each MTP layer would take in before it drafts; () for none.
    """

    sequence: int
    most: int
    behind: Sequence[int] = ()

    @property
    def is_behind(self) -> bool:
        """Whether more rows than usual wait for some MTP layer, because nobody asked it for drafts."""
        return any(rows > _USUAL_ROWS for rows in self.behind)

    @property
    def ready_layers(self) -> int:
        """The first MTP layers that have all rows but the usual ones."""
        return sum(1 for _ in takewhile(lambda rows: rows <= _USUAL_ROWS, self.behind))

    def upto(self, depth: int) -> int:
        """So many drafts, or as many as could become output."""
        return max(0, min(depth, self.most))

    def to_take_in(self, depth: int) -> tuple[int, ...]:
        """Rows that had waited for each of the first `depth` MTP layers, but for usual ones; () for none."""
        return _to_take_in(self.behind, depth)


def rows_taken_in(drafted: Iterable[tuple[Sequence[int], int]]) -> tuple[int, ...]:
    """Rows that had waited for each MTP layer, of all sequences together; () where nobody was behind.

    Args:
        drafted: of each sequence, what it was behind, and how many layers drafted for it.
    """
    rows = [_to_take_in(behind, depth) for behind, depth in drafted]
    return tuple(map(sum, zip_longest(*rows, fillvalue=0)))


def _to_take_in(behind: Sequence[int], depth: int) -> tuple[int, ...]:
    if not behind or max(behind[:depth], default=0) <= _USUAL_ROWS:
        return ()
    return tuple([rows if rows > _USUAL_ROWS else 0 for rows in behind[:depth]])
