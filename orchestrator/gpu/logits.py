"""Logits that stay on a card: ids are read back, and a row only where the card cannot choose its token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.row_choice import RowChoice, RowChoiceArgs
from orchestrator.sampling import Choice, choose_in_ram

_GREEDY = RowChoice(0.0, 0, 1.0, 0.0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class CardLogits:
    """Rows of logits; a `Logits`.

    Attributes:
        fetch: the numbers of a row, float32 [vocab], until the next one is fetched.
        choose_there: a token for each row, -1 where its largest logit is not finite. Rows with `banned_set` 1
            leave the given tokens out, others their own: 2 stands for those of the first row.
        leave_out: tells the card what a row's own are.
    """

    fetch: Callable[[int], NDArray[np.float32]]
    choose_there: Callable[[Sequence[RowChoiceArgs], tuple[int, ...]], list[int]]
    leave_out: Callable[[int, Choice], None]

    def choose(self, choices: Sequence[Choice]) -> list[int]:
        """See `Logits.choose`; one wait for all rows that the card chooses for, and one for each other."""
        # One set of tokens is left out of all rows that leave any out: it is the model's end tokens.
        common = next((choice.banned for choice in choices if choice.banned and choice.allowed is None), ())
        args = [self._args(place, choice, common) for place, choice in enumerate(choices)]
        found = [-1] * len(choices)
        if any(row is not None for row in args):
            found = self.choose_there([row or _GREEDY.args(banned_set=0) for row in args], common)
        return [
            choose_in_ram(self.fetch(place), choice) if row is None or token_id < 0 else token_id
            for place, (row, choice, token_id) in enumerate(zip(args, choices, found, strict=True))
        ]

    def _args(self, place: int, choice: Choice, common: tuple[int, ...]) -> RowChoiceArgs | None:
        """What the card takes of a row, once it has the row's own tokens to leave out; None to fetch it."""
        if not choice.is_plain:
            return None
        if choice.allowed is None and choice.banned in ((), common):
            return choice.how.args(banned_set=int(bool(choice.banned)))
        self.leave_out(place, choice)
        return choice.how.args(banned_set=2 + place)

    def row(self, place: int) -> NDArray[np.float32]:
        """See `Logits.row`."""
        return self.fetch(place).copy()


@dataclass(slots=True)
class LogitsInParts:
    """More rows than a card has room for, computed one part after another; a `Logits`.

    Attributes:
        part_rows: of each part but the last.
        compute: the logits of a part; those of the part before are gone then.
    """

    part_rows: int
    compute: Callable[[int], CardLogits]
    _computed: tuple[int, CardLogits] | None = None

    def choose(self, choices: Sequence[Choice]) -> list[int]:
        """See `Logits.choose`."""
        starts = range(0, len(choices), self.part_rows)
        parts = [choices[start : start + self.part_rows] for start in starts]
        return [token_id for number, part in enumerate(parts) for token_id in self._part(number).choose(part)]

    def row(self, place: int) -> NDArray[np.float32]:
        """See `Logits.row`; where another part was computed since, this one is computed again."""
        part, within = divmod(place, self.part_rows)
        return self._part(part).row(within)

    def _part(self, part: int) -> CardLogits:
        if self._computed is None or self._computed[0] != part:
            self._computed = part, self.compute(part)
        return self._computed[1]
