"""The depths of drafts with the most expected tokens a second, from gains and costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.scheduling.candidate import Candidate
from orchestrator.scheduling.draft_gains import DraftGains
from orchestrator.scheduling.draft_plan import Asked
from orchestrator.scheduling.measured_costs import MeasuredCosts
from orchestrator.scheduling.native import fastest

_LONGEST_USE_STEPS = 256
"""What rows that had waited cost is held against what drafts are expected to gain in so many steps."""
_MOST_TAKING_IN_STEPS = 3.0
"""Steps without drafts that taking in may take at a time, but for one sequence: all others wait for it."""


@dataclass(frozen=True, slots=True)
class FastestDepths:
    """Finds them for what is asked.

    Attributes:
        most: drafts of a sequence in a step.
        least_gain: part by which drafts must be faster than none; below 0, they may be slower.
        absent: sequences without drafts that are taken for there where rows wait.
    """

    costs: MeasuredCosts
    most: int
    asked: Asked
    least_gain: float
    absent: int

    def where_nothing_waits(self, gains: DraftGains) -> dict[int, int]:
        """As if nothing had to be taken in."""
        return self._found(gains, 0, {})[0]

    def where_rows_wait(self, gains: DraftGains, candidates: Sequence[Candidate]) -> dict[int, int]:
        """Some sequences begin now, if it pays until they end.

        The fewer sequences, the more drafts pay. But somebody soon follows who ended, so they count as there.
        """
        behind = [of for of in candidates if of.is_behind]
        ready = {of.sequence: of.ready_layers for of in behind}
        best, best_rate = self._found(gains.upto(ready), self.absent, {})
        if self.asked.other_rows:
            # With a prompt beside, the step would take longest of all.
            return best
        dear = {sequence: ready[sequence] for sequence in self._too_dear(behind)}
        taking_in_s = {of.sequence: self._taking_in_s(of) for of in behind}
        found, rate = self._found(gains.upto(dear), self.absent, taking_in_s)
        return found if rate > best_rate else best

    def _too_dear(self, behind: Sequence[Candidate]) -> list[int]:
        """Sequences for which so much waits that others begin first; what was never measured, one begins."""
        unit_s = self.costs.trunk_s(len(self.asked.sequences))
        left_s = _MOST_TAKING_IN_STEPS * unit_s if self.costs.is_taking_in_measured else 0.0
        found = []
        seconds = [(self.costs.taking_in_s(of.to_take_in(1)), of.sequence) for of in behind]
        for one_s, sequence in sorted(seconds, key=lambda one: one[0])[1:]:
            left_s -= one_s
            if left_s < 0:
                found.append(sequence)
        return found

    def _taking_in_s(self, of: Candidate) -> list[float]:
        """For each depth, what each of the steps is longer that are left to its answer."""
        steps = max(1, min(_LONGEST_USE_STEPS, of.most))
        return [self.costs.taking_in_s(of.to_take_in(depth)) / steps for depth in range(self.most + 1)]

    def _found(
        self, gains: DraftGains, absent: int, waiting_s: Mapping[int, list[float]]
    ) -> tuple[dict[int, int], float]:
        """The depths, and how many tokens a second; no drafts where those do not pay.

        For each depth and number of drafts those that gain most are taken. Where nothing waits, another
        choice is better by no more than what drafting for fewer sequences saves.

        Args:
            waiting_s: what a step is longer for what is taken in, by sequence and depth.
        """
        sequences, other_rows, most_rows = self.asked
        num_sequences = len(sequences) + absent
        rows = num_sequences + other_rows
        depths, rate = fastest(
            list(gains.by_place.values()),
            [waiting_s.get(sequence) for sequence in gains.by_place],
            self.costs.passes(rows + self.most * len(sequences)),
            [self.costs.drafting(depth, len(sequences)) for depth in range(1, self.most + 1)],
            num_sequences,
            rows,
            most_rows,
            self.least_gain,
        )
        return dict(zip(gains.by_place, depths, strict=True)), rate
