"""How many drafts to make for each sequence of a step: as many as make the batch fastest, or none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from orchestrator.scheduling.acceptance import Acceptance, Verified
from orchestrator.scheduling.candidate import Candidate, rows_taken_in
from orchestrator.scheduling.draft_gains import DraftGains
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
_LONGEST_USE_STEPS = 256
"""What rows that had waited cost is held against what drafts are expected to gain in so many steps."""
_MOST_TAKING_IN_STEPS = 3.0
"""Steps without drafts that taking in may take at a time, but for one sequence: all others wait for it."""
_FOLLOWED_STEPS = 16
"""So long somebody who ended is taken for there where rows are to be taken in: who follows comes soon."""


class _Asked(NamedTuple):
    """What depths are wanted for: `other_rows` of prompts, and at most `most_rows` of drafts."""

    sequences: tuple[int, ...]
    other_rows: int
    most_rows: int


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
        self._is_drafting = False
        self._near, self._far = _Account(_NEAR_SHARE), _Account(_FAR_SHARE)
        self._since_try = _TRY_GAP_STEPS // 2
        self._usual, self._usual_until = 0, 0
        """The most sequences lately, and the step until which that holds if no more come."""
        self._again: tuple[tuple[int, ...], dict[int, int], int] | None = None
        """What is tried: by whom, how, and for how many steps more."""
        self._plan: _Plan | None = None

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
            return {candidate.sequence: 0 for candidate in candidates}
        asked = _Asked(tuple([candidate.sequence for candidate in candidates]), other_rows, most_rows)
        if len(candidates) >= self._usual or self._step >= self._usual_until:
            self._usual, self._usual_until = len(candidates), self._step + _FOLLOWED_STEPS
        self._since_try += 1
        # What prompts cost beside would hide what is tried.
        tries = self._again is not None or (self._since_try >= _TRY_GAP_STEPS and not other_rows)
        plan = self._plan
        is_other = plan is not None and plan.asked != asked and (self._is_drafting or tries)
        if plan is None or self._step >= plan.until or is_other:
            plan = self._plan = self._planned(asked, candidates)
        for account in (self._near, self._far):
            account.save(plan.best_s / plan.unit_s)
        if not tries and not self._is_drafting:
            # Whoever comes meanwhile has no drafts either: to look anew takes time.
            return dict.fromkeys(asked.sequences, 0)
        chosen = self._try(plan, candidates) if tries else plan.best
        if chosen is plan.off:
            return chosen.copy()
        if plan.takes_in:
            # Once they are taken in, nothing waits any more.
            plan.until = self._step
        return {candidate.sequence: candidate.upto(chosen[candidate.sequence]) for candidate in candidates}

    def learn(self, verified: Iterable[Verified]) -> None:
        """A step is done, with drafts of these sequences."""
        self._step += 1
        self._acceptance.learn(verified)

    def forget(self, sequence: int) -> None:
        """It has ended."""
        self._acceptance.forget(sequence)

    def _planned(self, asked: _Asked, candidates: Sequence[Candidate]) -> _Plan:
        sequences, other_rows, _ = asked
        shared = self._acceptance.shared()
        gains = DraftGains.of(
            {candidate.sequence: min(candidate.most, self.most) for candidate in candidates},
            {sequence: self._acceptance.of(sequence, shared) for sequence in sequences},
        )
        off = dict.fromkeys(sequences, 0)
        unit_s = self._costs.trunk_s(len(off))
        best = self._fastest(gains, {}, asked)[0]
        takes_in = _takes_in(candidates, best)
        if takes_in:
            best = self._fastest_for_a_while(candidates, gains, asked, unit_s)
            takes_in = _takes_in(candidates, best)
        self._is_drafting = any(best.values())
        if not self._is_drafting:
            best = off
        best_s = self._step_s(best.values(), other_rows)
        until = self._step + _SAME_STEPS
        return _Plan(asked, until, gains, off, best, best_s, takes_in, unit_s)

    def _fastest_for_a_while(
        self, candidates: Sequence[Candidate], gains: DraftGains, asked: _Asked, unit_s: float
    ) -> dict[int, int]:
        """`_fastest` where rows wait: some sequences begin now, if it pays until they end.

        The fewer sequences, the more drafts pay. But somebody soon follows who ended, so they count as there.
        """
        waiting = self._waiting(candidates)
        ready = {of.sequence: of.ready_layers for of in candidates if of.sequence in waiting}
        absent = self._usual - len(candidates)
        best, best_rate = self._fastest(gains.upto(ready), {}, asked, absent)
        if asked.other_rows:
            # With a prompt beside, the step would take longest of all.
            return best
        dear = {sequence: ready[sequence] for sequence in self._too_dear(waiting, unit_s)}
        found, rate = self._fastest(gains.upto(dear), waiting, asked, absent)
        return found if rate > best_rate else best

    def _fastest(
        self, gains: DraftGains, waiting: _Waits, asked: _Asked, absent: int = 0
    ) -> tuple[dict[int, int], float]:
        """The depths with the most expected tokens a second, and how many; no drafts where those do not pay.

        For each depth and number of drafts those that gain most are taken. Where nothing waits, another
        choice is better by no more than what drafting for fewer sequences saves.

        Args:
            absent: sequences without drafts that are taken for there.
        """
        sequences, other_rows, most_rows = asked
        num_sequences = len(sequences) + absent
        off_rate = num_sequences / self._costs.trunk_s(num_sequences + other_rows)
        best_rate = off_rate * (1 - GO_ON_LOSS if self._is_drafting else 1 + BEGIN_GAIN)
        best_depth = best_count = 0
        best_first = gains.best_first()
        # How long a pass takes is asked for again and again.
        trunk_s: dict[int, float] = {}
        drafting_s: dict[int, float] = {}
        for depth in range(1, self.most + 1):
            tokens, count, drafting, waiting_s = float(num_sequences), 0, 0, 0.0
            drafting_s.clear()
            for gain, place, sequence in best_first:
                if place >= depth:
                    continue
                if count == most_rows:
                    break
                tokens, count = tokens + gain, count + 1
                if not place:
                    drafting += 1
                    if sequence in waiting:
                        waiting_s += waiting[sequence][depth][1]
                rows = num_sequences + count + other_rows
                if rows not in trunk_s:
                    trunk_s[rows] = self._costs.trunk_s(rows)
                if drafting not in drafting_s:
                    drafting_s[drafting] = self._costs.drafting_s(depth, drafting)
                rate = tokens / (trunk_s[rows] + drafting_s[drafting] + waiting_s)
                if rate > best_rate:
                    best_rate, best_depth, best_count = rate, depth, count
        return gains.best(best_depth, best_count), best_rate

    def _step_s(self, depths: Iterable[int], other_rows: int) -> float:
        drafts = list(depths)
        drafting = sum(depth > 0 for depth in drafts)
        trunk_s = self._costs.trunk_s(len(drafts) + sum(drafts) + other_rows)
        return trunk_s + self._costs.drafting_s(max(drafts), drafting)

    def _waiting_s(self, candidates: Sequence[Candidate], depths: Mapping[int, int]) -> float:
        return sum(self._costs.taking_in_s(of.to_take_in(depths[of.sequence])) for of in candidates)

    def _waiting(self, candidates: Sequence[Candidate]) -> _Waits:
        found = {}
        for candidate in candidates:
            if candidate.is_behind:
                steps = max(1, min(_LONGEST_USE_STEPS, candidate.most))
                taken_in = [candidate.to_take_in(depth) for depth in range(self.most + 1)]
                seconds = map(self._costs.taking_in_s, taken_in)
                found[candidate.sequence] = [(one_s, one_s / steps) for one_s in seconds]
        return found

    def _too_dear(self, waiting: _Waits, unit_s: float) -> set[int]:
        """Sequences for which so much waits that others begin first; what was never measured, one begins."""
        left_s = _MOST_TAKING_IN_STEPS * unit_s if self._costs.is_taking_in_measured else 0.0
        found = set()
        for sequence in sorted(waiting, key=lambda n: waiting[n][1][0])[1:]:
            left_s -= waiting[sequence][1][0]
            if left_s < 0:
                found.add(sequence)
        return found

    def _try(self, plan: _Plan, candidates: Sequence[Candidate]) -> dict[int, int]:
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

    def _begin(self, plan: _Plan, tried: _Try) -> dict[int, int]:
        self._again = (plan.asked.sequences, tried.depths, tried.steps - 1) if tried.steps > 1 else None
        return tried.depths if any(tried.depths.values()) else plan.off

    def _tries(self, plan: _Plan, candidates: Sequence[Candidate], depth: int) -> list[_Try]:
        """Ways to try a depth that are not the best one anyway.

        Where much waits, a try goes on for several steps, since it is taken in only once.
        """
        tries = []
        for depths in self._depths_to_try(plan, candidates, depth):
            if depths == plan.best or sum(depths.values()) > plan.asked.most_rows:
                continue
            step_s = self._step_s(depths.values(), plan.asked.other_rows)
            waiting_s = self._waiting_s(candidates, depths)
            step_loss_s = max(0.0, step_s - plan.gains.tokens(depths) / plan.best_rate)
            steps = 1
            if waiting_s:
                steps = min(_MOST_TRY_STEPS, int(2 + waiting_s / max(step_loss_s, 1e-9)))
            tries.append(_Try(depths, steps, (waiting_s + steps * step_loss_s) / plan.unit_s))
        return tries

    def _depths_to_try(
        self, plan: _Plan, candidates: Sequence[Candidate], depth: int
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


_Waits = Mapping[int, Sequence[tuple[float, float]]]
"""Of sequences for which rows wait, by depth: seconds of taking them in, and their part of a step."""


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


@dataclass(slots=True)
class _Plan:
    """What was found: the best depths, and the seconds of a step that they give.

    Attributes:
        until: the step at which it is looked for again.
        off: no drafts.
        takes_in: whether rows wait for those who draft.
        unit_s: of a step without drafts and without prompts.
    """

    asked: _Asked
    until: int
    gains: DraftGains
    off: dict[int, int]
    best: dict[int, int]
    best_s: float
    takes_in: bool
    unit_s: float

    @property
    def best_rate(self) -> float:
        """Expected tokens a second."""
        return self.gains.tokens(self.best) / self.best_s
