"""How many drafts to make for each sequence of a step: as many as make the batch fastest, or none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from orchestrator.scheduling.acceptance import Acceptance, Verified
from orchestrator.scheduling.candidate import Candidate, rows_taken_in
from orchestrator.scheduling.draft_gains import DraftGains
from orchestrator.scheduling.draft_plan import Asked, DraftPlan
from orchestrator.scheduling.draft_tries import DraftTries
from orchestrator.scheduling.fastest_depths import FastestDepths
from orchestrator.scheduling.measured_costs import MeasuredCosts

_GO_ON_LOSS = 0.01
"""Drafts begin where they are faster than none, and go on until they are slower by that part.

Only drafts show whether drafts hold, so an estimate that is a little too low must not end them.
"""
_SAME_STEPS = 16
"""So long a choice holds for the same sequences, or for those that are left: a step teaches little."""
_FOLLOWED_STEPS = 16
"""So long somebody who ended is taken for there where rows are to be taken in: who follows comes soon."""


class DraftDepth:
    """Chooses depths from measured acceptance and costs; the same messages give the same choices.

    Drafts are made where they are expected to pay. Now and then another depth is tried, so that what changed
    is noticed.
    """

    def __init__(self, most: int, costs: MeasuredCosts) -> None:
        """`most`: drafts of a sequence in a step; `costs` may learn meanwhile."""
        self.most = min(most, costs.most_drafts)
        self._costs = costs
        self._step = 0
        self._acceptance = Acceptance(self.most)
        self._tries = DraftTries(self.most, costs)
        self._usual, self._usual_until = 0, 0
        """The most sequences lately, and the step until which that holds if no more come."""
        self._plan: DraftPlan | None = None
        self._plan_until = 0
        """The step at which it is made anew."""

    def acceptance(self, sequence: int) -> list[float]:
        """Expected chance of each draft to hold if those before it do."""
        return self._acceptance.of(sequence, self._acceptance.shared())

    def choose(
        self, candidates: Sequence[Candidate], other_rows: int = 0, most_rows: int = 1 << 30
    ) -> dict[int, int]:
        """Drafts of each sequence in the next step.

        Args:
            other_rows: of prompts in the same pass.
            most_rows: that drafts may add to it.
        """
        if not candidates or not self.most:
            return _no_drafts(candidates)
        if len(candidates) >= self._usual or self._step >= self._usual_until:
            self._usual, self._usual_until = len(candidates), self._step + _FOLLOWED_STEPS
        tries, plan = self._tries.next_step(other_rows), self._plan
        if plan is None or tries or plan.is_drafting or self._step >= self._plan_until:
            asked = Asked(tuple([of.sequence for of in candidates]), other_rows, most_rows)
            holds = plan is not None and (plan.asked == asked if tries else plan.holds_for(asked))
            if plan is None or not holds or self._step >= self._plan_until:
                plan = self._plan = self._planned(asked, candidates)
                self._plan_until = self._step + _SAME_STEPS
        # Else whoever comes meanwhile has no drafts either: to look anew takes time.
        self._tries.save(plan)
        if not tries and not plan.is_drafting:
            return _no_drafts(candidates)
        chosen = self._tries.depths(plan, candidates) if tries else plan.best
        if plan.takes_in and any(chosen.values()) and not all(chosen.values()):
            # What they waited for is taken in, so others may begin.
            self._plan_until = self._step
        return {candidate.sequence: candidate.upto(chosen[candidate.sequence]) for candidate in candidates}

    def learn(self, verified: Iterable[Verified]) -> None:
        """A step is done, with drafts of these sequences."""
        self._step += 1
        self._acceptance.learn(verified)

    def plan_anew(self) -> None:
        """Somebody was put back: its rows will wait again."""
        self._plan_until = self._step

    def forget(self, sequence: int) -> None:
        """It has ended."""
        self._acceptance.forget(sequence)

    def _planned(self, asked: Asked, candidates: Sequence[Candidate]) -> DraftPlan:
        shared = self._acceptance.shared()
        chances = [(of, self._acceptance.of(of.sequence, shared)) for of in candidates]
        gains = DraftGains.of({of.sequence: own[: of.upto(self.most)] for of, own in chances})
        is_drafting = self._plan is not None and self._plan.is_drafting
        least_gain = -_GO_ON_LOSS if is_drafting else 0.0
        absent = self._usual - len(candidates)
        fastest = FastestDepths(self._costs, self.most, asked, least_gain, absent)
        best = fastest.where_nothing_waits(gains)
        takes_in = _takes_in(candidates, best)
        if takes_in:
            best = fastest.where_rows_wait(gains, candidates)
            takes_in = _takes_in(candidates, best)
        best_s = self._costs.step_s(best.values(), asked.other_rows)
        return DraftPlan(asked, gains, best, best_s, takes_in, self._costs.trunk_s(len(candidates)))


def _no_drafts(candidates: Iterable[Candidate]) -> dict[int, int]:
    return dict.fromkeys([of.sequence for of in candidates], 0)


def _takes_in(candidates: Iterable[Candidate], depths: Mapping[int, int]) -> bool:
    """Whether somebody has rows to take in for these depths."""
    return any(depths.values()) and any(rows_taken_in((of.behind, depths[of.sequence]) for of in candidates))
