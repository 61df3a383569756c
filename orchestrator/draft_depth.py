"""How many drafts to make for each sequence of a step: as many as make the batch fastest, or none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.scheduling.acceptance import Acceptance, Verified
from orchestrator.scheduling.candidate import Candidate, rows_taken_in
from orchestrator.scheduling.draft_gains import DraftGains
from orchestrator.scheduling.draft_plan import Asked, DraftPlan
from orchestrator.scheduling.fastest_depths import FastestDepths
from orchestrator.scheduling.measured_costs import MeasuredCosts

BEGIN_GAIN, GO_ON_LOSS = 0.005, 0.01
"""Drafts begin where they are faster than none by that part, and go on until they are slower by this one.

Only drafts show whether drafts hold, so an estimate that is a little too low must not end them.
"""
_NEAR_SHARE, _FAR_SHARE = 0.002, 0.001
"""Shares of the time that tries may cost beside the best depths: near ones say whether to draft at all."""
_TRIES_AT_FIRST_STEPS, _MOST_TRIES_STEPS = 1.5, 6.0
"""What either kind may cost at first, and what it may save up, in steps without drafts."""
_TRY_GAP_STEPS = 12
_MOST_TRY_STEPS = 8
"""As many steps on end another depth is tried where much had to be taken in for the first one."""
_SAME_STEPS = 16
"""So long a choice holds for the same sequences: what is learned in a step changes little."""
_LONGEST_SAVING_STEPS = 60
"""So long nobody looks again what can be tried, at most, where nothing can be paid for yet."""
_FOLLOWED_STEPS = 16
"""So long somebody who ended is taken for there where rows are to be taken in: who follows comes soon."""


class DraftDepth:
    """Chooses depths from measured acceptance and costs; the same messages give the same choices.

    Drafts are made where they are expected to pay. Now and then another depth is tried, so that what changed
    is noticed; two accounts, shares of the time, pay for what that is expected to lose.
    """

    def __init__(self, most: int, costs: MeasuredCosts) -> None:
        """`most`: drafts of a sequence in a step; `costs` may learn meanwhile."""
        self.most = min(most, costs.most_drafts)
        self._costs = costs
        self._step = 0
        self._acceptance = Acceptance(self.most)
        self._near, self._far = _Account(_NEAR_SHARE), _Account(_FAR_SHARE)
        self._since_try = _TRY_GAP_STEPS // 2
        self._usual, self._usual_until = 0, 0
        """The most sequences lately, and the step until which that holds if no more come."""
        self._again: tuple[tuple[int, ...], dict[int, int], int] | None = None
        """What is tried: by whom, how, and for how many steps more."""
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
        asked = Asked(tuple([candidate.sequence for candidate in candidates]), other_rows, most_rows)
        if not candidates or not self.most:
            return dict.fromkeys(asked.sequences, 0)
        if len(candidates) >= self._usual or self._step >= self._usual_until:
            self._usual, self._usual_until = len(candidates), self._step + _FOLLOWED_STEPS
        self._since_try += 1
        # What prompts cost beside would hide what is tried.
        tries = self._again is not None or (self._since_try >= _TRY_GAP_STEPS and not other_rows)
        plan = self._plan
        is_other = plan is not None and plan.asked != asked and (plan.is_drafting or tries)
        if plan is None or self._step >= self._plan_until or is_other:
            plan = self._plan = self._planned(asked, candidates)
            self._plan_until = self._step + _SAME_STEPS
        for account in (self._near, self._far):
            account.save(plan.best_steps)
        if not tries and not plan.is_drafting:
            # Whoever comes meanwhile has no drafts either: to look anew takes time.
            return dict.fromkeys(asked.sequences, 0)
        chosen = self._try(plan, candidates) if tries else plan.best
        if plan.takes_in and any(chosen.values()):
            # Once they are taken in, nothing waits any more.
            self._plan_until = self._step
        return {candidate.sequence: candidate.upto(chosen[candidate.sequence]) for candidate in candidates}

    def learn(self, verified: Iterable[Verified]) -> None:
        """A step is done, with drafts of these sequences."""
        self._step += 1
        self._acceptance.learn(verified)

    def forget(self, sequence: int) -> None:
        """It has ended."""
        self._acceptance.forget(sequence)

    def _planned(self, asked: Asked, candidates: Sequence[Candidate]) -> DraftPlan:
        shared = self._acceptance.shared()
        gains = DraftGains.of(
            {candidate.sequence: min(candidate.most, self.most) for candidate in candidates},
            {sequence: self._acceptance.of(sequence, shared) for sequence in asked.sequences},
        )
        is_drafting = self._plan is not None and self._plan.is_drafting
        least_gain = -GO_ON_LOSS if is_drafting else BEGIN_GAIN
        absent = self._usual - len(candidates)
        fastest = FastestDepths(self._costs, self.most, asked, least_gain, absent)
        best = fastest.where_nothing_waits(gains)
        takes_in = _takes_in(candidates, best)
        if takes_in:
            best = fastest.where_rows_wait(gains, candidates)
            takes_in = _takes_in(candidates, best)
        best_s = self._costs.step_s(best.values(), asked.other_rows)
        return DraftPlan(asked, gains, best, best_s, takes_in, self._costs.trunk_s(len(candidates)))

    def _try(self, plan: DraftPlan, candidates: Sequence[Candidate]) -> dict[int, int]:
        """The best depths, or others where it is time to try them and there is time to spare.

        Of the ways to try a depth the first one is taken that can be paid for.
        """
        if self._again is not None:
            sequences, again, left = self._again
            self._again = (sequences, again, left - 1) if left > 1 else None
            if sequences == plan.asked.sequences and sum(again.values()) <= plan.asked.most_rows:
                return again
            self._again = None
            return plan.best
        self._since_try = 0
        deepest = max(plan.best.values())
        # What it costs that all draft as deep as the deepest was perhaps measured long ago.
        near = (0, deepest) if deepest else (1,)
        # Beyond a depth that is slower, more are slower still; where none is drafted, nobody knows of any.
        far = (deepest + 1, deepest - 1) if deepest else tuple(range(2, self.most + 1))
        far = tuple(depth for depth in far if 0 < depth <= self.most) or near
        saving_steps = float(_LONGEST_SAVING_STEPS)
        # A far one that is too dear is waited for: near ones have time of their own.
        for account, depths in ((self._far, far), (self._near, near)):
            turn = account.turns % len(depths)
            ways = (self._tries(plan, candidates, depth) for depth in depths[turn:] + depths[:turn])
            tries = next(filter(None, ways), [])
            tried = next((one for one in tries if one.loss <= account.steps), None)
            if tried is not None:
                account.turns += 1
                account.steps -= tried.loss
                return self._begin(plan, tried)
            saving_steps = min([saving_steps, *(account.until(one.loss) for one in tries)])
        # To look takes time too, so not before something may be paid for.
        self._since_try -= max(0, int(saving_steps) - _TRY_GAP_STEPS)
        return plan.best

    def _begin(self, plan: DraftPlan, tried: _Try) -> dict[int, int]:
        self._again = (plan.asked.sequences, tried.depths, tried.steps - 1) if tried.steps > 1 else None
        return tried.depths

    def _tries(self, plan: DraftPlan, candidates: Sequence[Candidate], depth: int) -> list[_Try]:
        """Ways to try a depth that are not the best one anyway.

        Where much waits, a try goes on for several steps, since it is taken in only once.
        """
        tries = []
        for depths in self._depths_to_try(plan, candidates, depth):
            if depths == plan.best or sum(depths.values()) > plan.asked.most_rows:
                continue
            step_s = self._costs.step_s(depths.values(), plan.asked.other_rows)
            taken_in = (of.to_take_in(depths[of.sequence]) for of in candidates)
            waiting_s = sum(map(self._costs.taking_in_s, taken_in))
            step_loss_s = max(0.0, step_s - plan.gains.tokens(depths) / plan.best_rate)
            steps = 1
            if waiting_s:
                steps = min(_MOST_TRY_STEPS, int(2 + waiting_s / max(step_loss_s, 1e-9)))
            tries.append(_Try(depths, steps, (waiting_s + steps * step_loss_s) / plan.unit_s))
        return tries

    def _depths_to_try(
        self, plan: DraftPlan, candidates: Sequence[Candidate], depth: int
    ) -> Iterable[dict[int, int]]:
        """All sequences have that depth. Where rows wait, the sequence with the fewest may have it alone.

        Then all have it only if it is one draft, and if what it costs to take rows in was measured.
        """
        waits = {of.sequence: sum(of.to_take_in(depth)) for of in candidates}
        waits_none = len(candidates) == 1 or not any(waits.values())
        if waits_none or (depth <= 1 and self._costs.is_taking_in_measured):
            yield {of.sequence: of.upto(depth) for of in candidates}
        if not waits_none:
            one = min(candidates, key=lambda of: waits[of.sequence])
            yield {**plan.best, one.sequence: one.upto(depth)}


def _takes_in(candidates: Sequence[Candidate], depths: Mapping[int, int]) -> bool:
    """Whether somebody has rows to take in for these depths."""
    return any(rows_taken_in((of.behind, depths[of.sequence]) for of in candidates))


@dataclass(slots=True)
class _Account:
    """Time for tries: a share of all time.

    Attributes:
        steps: what is saved, in steps without drafts, whatever these take: the box may get slower, and
            sequences come and go.
        turns: tries so far; each time another depth is the first one to be looked at.
    """

    share: float
    steps: float = _TRIES_AT_FIRST_STEPS
    turns: int = 0

    def save(self, step: float) -> None:
        """A step was run, that took as long as so many without drafts."""
        self.steps = min(self.steps + self.share * step, _MOST_TRIES_STEPS)

    def until(self, loss: float) -> float:
        """Steps until so much is saved."""
        return (loss - self.steps) / self.share


@dataclass(frozen=True, slots=True)
class _Try:
    """Other depths for so many steps, and what that is expected to lose, in steps without drafts."""

    depths: dict[int, int]
    steps: int
    loss: float
