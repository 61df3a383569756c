"""What `DraftDepth` is told of sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


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
