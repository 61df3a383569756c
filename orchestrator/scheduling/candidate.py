"""What `DraftDepth` is told of sequences, and the rows that MTP layers must take in before they draft."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import NamedTuple

from orchestrator.scheduling.native import USUAL_ROWS


class Candidate(NamedTuple):
    """A sequence that is decoded, so that it may be drafted for.

    Attributes:
        most: drafts that could still become its output.
        behind: rows that each MTP layer would take in before it drafts; () for none.
    """

    sequence: int
    most: int
    behind: Sequence[int] = ()


class Verified(NamedTuple):
    """What became of a sequence's drafts."""

    sequence: int
    drafted: int
    accepted: int


def rows_taken_in(drafted: Iterable[tuple[Sequence[int], int]]) -> tuple[int, ...]:
    """Rows that had waited for each MTP layer, of all sequences together; () where nobody was behind.

    Args:
        drafted: of each sequence, what it was behind, and how many layers drafted for it.
    """
    rows = [_to_take_in(behind, depth) for behind, depth in drafted]
    return tuple(map(sum, zip_longest(*rows, fillvalue=0)))


def _to_take_in(behind: Sequence[int], depth: int) -> tuple[int, ...]:
    if not behind or max(behind[:depth], default=0) <= USUAL_ROWS:
        return ()
    return tuple([rows if rows > USUAL_ROWS else 0 for rows in behind[:depth]])
