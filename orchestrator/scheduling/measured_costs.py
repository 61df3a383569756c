"""A predicted curve of costs, corrected by what steps really take."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from orchestrator.scheduling.curve import Curve
from orchestrator.scheduling.native import Corrections
from placement.pass_costs import PassCosts

_PASS_DRIFT = 0.03**2
"""Variance that a step adds to passes of all sizes alike: a box gets slower as a whole, for some steps."""
_DRAFTING_DRIFT = 0.003**2
"""Variance that a step adds to how drafting stands to passes."""
_ROWS_IN_DRAFTING = 2
"""Of a sequence: its newest row, and about one that was accepted or hung on a draft."""


class MeasuredCosts:
    """Seconds of passes and of drafting: the prediction times a correction by size.

    A measurement corrects its own size and, since boxes get slower and faster as a whole, all others too.
    Drafting is compared with how slow the box is now, which passes tell. So report a step's pass first.
    """

    def __init__(self, predicted: PassCosts) -> None:
        self.predicted = predicted
        self._passes_table = _Table(predicted.trunk_s)
        """By rows."""
        self._drafting_tables = [
            _Table(partial(_drafting_s, predicted, depth + 1)) for depth in range(self.most_drafts)
        ]
        """By depth and sequences."""
        self._steps = 0
        self._passes = Corrections(_PASS_DRIFT)
        """What they have in common, all other work has too."""
        self._nothing = Corrections(0.0)
        """Of what was never measured."""
        self._drafting: dict[int, Corrections] = {}
        """By depth; its sizes are numbers of sequences."""
        self._taking_in = Corrections(_DRAFTING_DRIFT)
        """Its sizes are numbers of rows, all layers together."""

    @property
    def most_drafts(self) -> int:
        """MTP layers whose cost is known."""
        return len(self.predicted.draft_s)

    @property
    def is_taking_in_measured(self) -> bool:
        """Whether MTP layers took in rows that had waited, so that its cost is not guessed."""
        return self._taking_in.are_known

    def trunk_s(self, rows: int) -> float:
        """Of a pass of so many rows."""
        return self.passes(rows).seconds(rows)

    def drafting_s(self, depth: int, sequences: int) -> float:
        """Of the first `depth` MTP layers drafting for so many sequences, for which few rows wait.

        Until one was measured, it is corrected as a pass of one row.
        """
        if not depth or not sequences:
            return 0.0
        return self.drafting(depth, sequences).seconds(sequences)

    def passes(self, most_rows: int) -> Curve:
        """`trunk_s` of 1 to `most_rows` rows."""
        return Curve(self._passes_table.upto(most_rows), self._passes, 0.0)

    def drafting(self, depth: int, most_sequences: int) -> Curve:
        """`drafting_s` of that depth, at least 1, for 1 to `most_sequences` sequences."""
        predicted_s = self._drafting_tables[depth - 1].upto(most_sequences)
        if not self._drafting:
            return Curve(predicted_s, self._nothing, self._passes.at(0.0))
        known = self._drafting.get(depth)
        if known is None:
            known = self._drafting[min(self._drafting, key=lambda other: abs(other - depth))]
        return Curve(predicted_s, known, self._passes.common)

    def taking_in_s(self, rows: Sequence[int]) -> float:
        """Of so many rows more in each of the first MTP layers, which had waited for them."""
        predicted_s = self._predicted_taking_in_s(rows)
        if not predicted_s:
            return 0.0
        if not self._taking_in.are_known:
            return predicted_s * math.exp(self._passes.at(0.0))
        return predicted_s * math.exp(self._passes.common + self._taking_in.at(math.log(sum(rows))))

    def step_s(self, depths: Iterable[int], other_rows: int) -> float:
        """Of a step whose sequences draft so deep, with so many rows of prompts and nothing to take in."""
        drafts = list(depths)
        drafting = sum(depth > 0 for depth in drafts)
        trunk_s = self.trunk_s(len(drafts) + sum(drafts) + other_rows)
        return trunk_s + self.drafting_s(max(drafts), drafting)

    def learn_pass(self, rows: int, seconds: float) -> None:
        """A pass of so many rows took so long."""
        if rows > 0 and 0 < seconds < math.inf:
            self._steps += 1
            self._passes.learn(rows, math.log(seconds / self._passes_table.upto(rows)[rows]), self._steps)

    def learn_drafting(
        self, depth: int, sequences: int, seconds: float, taken_in: Sequence[int] = ()
    ) -> None:
        """So many MTP layers drafted for so many sequences; `taken_in`: rows of each that had waited."""
        if not depth or not sequences or not 0 < seconds < math.inf:
            return
        if sum(taken_in):
            # Drafting itself may have been anything between nothing and twice what is usual.
            left_s = max(seconds - self.drafting_s(depth, sequences), 0.1 * seconds)
            predicted_s = self._predicted_taking_in_s(taken_in)
            if predicted_s > 0:
                found = math.log(left_s / predicted_s) - self._passes.common
                self._taking_in.learn(sum(taken_in), found, self._steps)
            return
        predicted_s = self._drafting_tables[depth - 1].upto(sequences)[sequences]
        if predicted_s > 0:
            if depth not in self._drafting:
                self._drafting[depth] = Corrections(_DRAFTING_DRIFT)
            found = math.log(seconds / predicted_s) - self._passes.common
            self._drafting[depth].learn(sequences, found, self._steps)

    def _predicted_taking_in_s(self, rows: Sequence[int]) -> float:
        return sum(count * row_s for count, (_, row_s) in zip(rows, self.predicted.draft_s, strict=False))


class _Table:
    """Predicted seconds by size, from 1 on, each asked for once."""

    def __init__(self, of_size: Callable[[int], float]) -> None:
        self._of_size = of_size
        self._seconds = array("d", [0.0])

    def upto(self, size: int) -> array[float]:
        """At least of sizes up to this one; the first place is nobody's."""
        seconds = self._seconds
        if size >= len(seconds):
            seconds.extend(map(self._of_size, range(len(seconds), size + 1)))
        return seconds


def _drafting_s(predicted: PassCosts, depth: int, sequences: int) -> float:
    return predicted.drafting_s(depth, _ROWS_IN_DRAFTING * sequences)
