"""Logits that stay on a card: ids are read back, and a row only where the card cannot choose its token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.row_choice import RowChoice, RowChoiceArgs
from orchestrator.sampling import Choice, choose_in_ram, finite_token

_GREEDY = RowChoice(0.0, 0, 1.0, 0.0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class CardLogits:
    """Rows of logits; a `Logits`.

    Attributes:
        fetch: the numbers of a row, float32 [vocab], until the next one is fetched.
        choose_there: a token for each row, -1 where its largest logit is not finite. Rows that say so leave
            the given tokens out.
    """

    fetch: Callable[[int], NDArray[np.float32]]
    choose_there: Callable[[Sequence[RowChoiceArgs], tuple[int, ...]], list[int]]

    def choose(self, choices: Sequence[Choice]) -> list[int]:
        """See `Logits.choose`; one wait for all rows that the card chooses for, and one for each other."""
        # One set of tokens is left out of all rows that leave any out: it is the model's end tokens.
        banned = next((choice.banned for choice in choices if choice.banned), ())
        there = [choice.is_plain and choice.banned in ((), banned) for choice in choices]
        found = [0] * len(choices)
        if any(there):
            rows = [
                choice.how.args(has_banned=bool(choice.banned)) if own else _GREEDY.args(has_banned=False)
                for choice, own in zip(choices, there, strict=True)
            ]
            found = self.choose_there(rows, banned)
        return [
            finite_token(found[place]) if own else choose_in_ram(self.fetch(place), choice)
            for place, (choice, own) in enumerate(zip(choices, there, strict=True))
        ]

    def row(self, place: int) -> NDArray[np.float32]:
        """See `Logits.row`."""
        return self.fetch(place).copy()
