"""Tries of other depths than the best ones, so that what changed is noticed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from orchestrator.scheduling.candidate import Candidate
from orchestrator.scheduling.draft_plan import DraftPlan
from orchestrator.scheduling.measured_costs import MeasuredCosts

_NEAR_SHARE, _FAR_SHARE = 0.002, 0.001
"""Shares of the time that tries may cost beside the best depths: near ones say whether to draft at all."""
_TRIES_AT_FIRST_STEPS, _MOST_TRIES_STEPS = 1.5, 6.0
"""What either kind may cost at first, and what it may save up, in steps without drafts."""
_TRY_STEPS = 0.06
"""What a try costs beside its steps: planning it takes time, and the steps behind it find less in caches."""
_TRY_GAP_STEPS = 12
"""From one try to the next, at least."""
_MOST_TRY_STEPS = 8
"""As many steps on end another depth is tried where much had to be taken in for the first one."""
_WITHOUT_STEPS = 3
"""So many steps on end nobody drafts: the first finds fewer weights in caches, and is not learned from."""
_LONGEST_SAVING_STEPS = 60
"""So long nobody looks again what can be tried, at most, where nothing can be paid for yet."""


class DraftTries:
    """Says when to try which depths. Two accounts, shares of the time, pay for what that is expected to lose.

    For each step, call `next_step`, then `save`, then `depths` where a try is due.
    """

    def __init__(self, most: int, costs: MeasuredCosts) -> None:
        """`most`: drafts of a sequence in a step."""
        self._most = most
        self._costs = costs
        self._near, self._far = _Account(_NEAR_SHARE), _Account(_FAR_SHARE)
        self._time = 0.0
        """So far, in steps without drafts."""
        self._wait_steps = _TRY_GAP_STEPS // 2
        """Until a try may begin."""
        self._going_on: _Try | None = None
        """What was begun, with the steps that are left to it."""

    def next_step(self, other_rows: int) -> bool:
        """Another step comes, with so many rows of prompts: whether a try is due."""
        self._wait_steps -= 1
        # What prompts cost beside would hide what is tried.
        return self._going_on is not None or (self._wait_steps <= 0 and not other_rows)

    def save(self, plan: DraftPlan) -> None:
        """The step takes as long as the plan's."""
        self._time += plan.best_steps

    def depths(self, plan: DraftPlan, candidates: Sequence[Candidate]) -> dict[int, int]:
        """To try in this step; the best ones where no others can be paid for."""
        if self._going_on is not None:
            return self._go_on(self._going_on, plan)
        for account in (self._near, self._far):
            account.save_until(self._time)
        near, far = _depths_to_try(max(plan.best.values()), self._most)
        # A far one that is too dear is waited for: near ones have time of their own.
        offers = [
            (account, self._offered(plan, candidates, account.in_turn(depths)))
            for account, depths in ((self._far, far), (self._near, near))
        ]
        self._wait_steps = _TRY_GAP_STEPS
        for account, tries in offers:
            for one in tries:
                if account.pays(one.loss):
                    return self._run(one)
        self._save_up(offers)
        return plan.best

    def _go_on(self, tried: _Try, plan: DraftPlan) -> dict[int, int]:
        """As long as the same sequences are there, and room for their drafts."""
        if tuple(tried.depths) == plan.asked.sequences and tried.num_drafts <= plan.asked.most_rows:
            return self._run(tried)
        self._going_on = None
        return plan.best

    def _run(self, tried: _Try) -> dict[int, int]:
        self._going_on = replace(tried, steps=tried.steps - 1) if tried.steps > 1 else None
        return tried.depths

    def _save_up(self, offers: Iterable[tuple[_Account, Sequence[_Try]]]) -> None:
        """To look takes time too, so not before something may be paid for."""
        waits = [account.saving_steps(one.loss) for account, tries in offers for one in tries]
        self._wait_steps = max(_TRY_GAP_STEPS, int(min([_LONGEST_SAVING_STEPS, *waits])))

    def _offered(
        self, plan: DraftPlan, candidates: Sequence[Candidate], depths: Iterable[int]
    ) -> Sequence[_Try]:
        """Ways to try the first of these depths that there are any for."""
        ways = (self._tries(plan, candidates, depth) for depth in depths)
        return next(filter(None, ways), [])

    def _tries(self, plan: DraftPlan, candidates: Sequence[Candidate], depth: int) -> list[_Try]:
        """Ways to try a depth that are not the best one anyway.

        Where much waits, a try goes on for several steps, since it is taken in only once. So does one without
        drafts.
        """
        tries = []
        for depths in self._ways(plan, candidates, depth):
            if depths == plan.best or sum(depths.values()) > plan.asked.most_rows:
                continue
            step_s = self._costs.step_s(depths.values(), plan.asked.other_rows)
            taken_in = (of.to_take_in(depths[of.sequence]) for of in candidates)
            waiting_s = sum(map(self._costs.taking_in_s, taken_in))
            step_loss_s = max(0.0, step_s - plan.gains.tokens(depths) / plan.best_rate)
            steps = 1
            if not any(depths.values()):
                steps = _WITHOUT_STEPS
            elif waiting_s:
                steps = min(_MOST_TRY_STEPS, int(2 + waiting_s / max(step_loss_s, 1e-9)))
            loss = (waiting_s + steps * step_loss_s) / plan.unit_s
            tries.append(_Try(depths, steps, loss + _TRY_STEPS))
        return tries

    def _ways(self, plan: DraftPlan, candidates: Sequence[Candidate], depth: int) -> Iterator[dict[int, int]]:
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


def _depths_to_try(deepest: int, most: int) -> tuple[Sequence[int], Sequence[int]]:
    """Near ones and far ones, where the best depths go down to `deepest`."""
    if not deepest:
        # Without drafts nobody knows which depth would be slower, so each has its turn.
        return (1,), range(2, most + 1) or (1,)
    # What it costs that all draft as deep as the deepest was perhaps measured long ago.
    near = (0, deepest)
    # Beyond a depth that is slower, more are slower still.
    return near, [depth for depth in (deepest + 1, deepest - 1) if 0 < depth <= most] or near


@dataclass(slots=True)
class _Account:
    """Time for tries: a share of all time.

    Attributes:
        steps: what is saved, in steps without drafts, whatever these take: the box may get slower, and
            sequences come and go.
        time: until when it was saved.
        turns: tries so far; each time another depth is the first one to be looked at.
    """

    share: float
    steps: float = _TRIES_AT_FIRST_STEPS
    time: float = 0.0
    turns: int = 0

    def save_until(self, time: float) -> None:
        """Save of all steps up to then; `time` is in steps without drafts too."""
        self.steps = min(self.steps + self.share * (time - self.time), _MOST_TRIES_STEPS)
        self.time = time

    def in_turn(self, depths: Sequence[int]) -> list[int]:
        """The depths from the one on whose turn it is."""
        turn = self.turns % len(depths)
        return [*depths[turn:], *depths[:turn]]

    def pays(self, loss: float) -> bool:
        """Whether it has enough for a try, which is paid then."""
        if loss > self.steps:
            return False
        self.turns += 1
        self.steps -= loss
        return True

    def saving_steps(self, loss: float) -> float:
        """Steps until it has enough."""
        return (loss - self.steps) / self.share


@dataclass(frozen=True, slots=True)
class _Try:
    """Other depths for so many steps, and what that is expected to lose, in steps without drafts."""

    depths: dict[int, int]
    steps: int
    loss: float

    @property
    def num_drafts(self) -> int:
        """Of all sequences in a step."""
        return sum(self.depths.values())
