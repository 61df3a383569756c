"""Logits that stay on a card: an id is read back where the largest is wanted, a row where one is sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(slots=True)
class CardLogits:
    """Rows of logits, good until the card computes the next ones.

    Attributes:
        fetch: the numbers of a row, float32 [vocab].
        largest: ids of all rows' largest, -1 where it is not finite: int32 [num_rows], without some tokens.
    """

    num_rows: int
    fetch: Callable[[int], NDArray[np.float32]]
    largest: Callable[[Sequence[int]], NDArray[np.int32]]
    _found: dict[tuple[int, ...], list[int]] = field(default_factory=dict)

    def rows(self) -> list[CardLogitsRow]:
        return [CardLogitsRow(self, row) for row in range(self.num_rows)]

    def largest_of(self, row: int, banned: Sequence[int]) -> int:
        """As `largest`; those of all rows come together, so that a step waits once."""
        key = tuple(banned)
        if key not in self._found:
            self._found[key] = self.largest(banned).tolist()
        return self._found[key][row]


@dataclass(frozen=True, slots=True)
class CardLogitsRow:
    """One of them, a `ComparedRow`."""

    logits: CardLogits
    row: int

    def numpy(self) -> NDArray[np.float32]:
        """See `LogitsRow.numpy`."""
        return self.logits.fetch(self.row)

    def largest(self, banned: Sequence[int]) -> int | None:
        """See `ComparedRow.largest`."""
        found = self.logits.largest_of(self.row, banned)
        return found if found >= 0 else None
