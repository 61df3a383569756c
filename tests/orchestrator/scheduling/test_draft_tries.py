"""Tries of other depths: paid for, spread, and gone on with for the same sequences only."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest

from orchestrator.scheduling.candidate import Candidate
from orchestrator.scheduling.draft_gains import DraftGains
from orchestrator.scheduling.draft_plan import Asked, DraftPlan
from orchestrator.scheduling.draft_tries import DraftTries
from orchestrator.scheduling.measured_costs import MeasuredCosts
from placement.pass_costs import PassCosts


def costs_of(draft_s: float) -> MeasuredCosts:
    """`draft_s`: seconds of a draft, beside passes of one second."""
    return MeasuredCosts(PassCosts((1, 2, 8), (1.0, 1.0, 1.0), ((draft_s, 0.0),) * 3))


def plan_of(
    candidates: Sequence[Candidate], best: int, costs: MeasuredCosts, most_rows: int = 1 << 30
) -> DraftPlan:
    """As if drafts held half the time."""
    sequences = tuple(of.sequence for of in candidates)
    gains = DraftGains({sequence: [0.5, 0.25, 0.125] for sequence in sequences})
    depths = dict.fromkeys(sequences, best)
    best_s = costs.step_s(depths.values(), 0)
    unit_s = costs.trunk_s(len(sequences))
    return DraftPlan(Asked(sequences, 0, most_rows), gains, depths, best_s, takes_in=False, unit_s=unit_s)


def tried(
    tries: DraftTries, plan: DraftPlan, candidates: Sequence[Candidate], steps: int
) -> list[dict[int, int]]:
    """The depths of so many steps."""
    chosen = []
    for _ in range(steps):
        is_due = tries.next_step(plan.asked.other_rows)
        tries.save(plan)
        chosen.append(tries.depths(plan, candidates) if is_due else plan.best)
    return chosen


def test_cheap_tries_go_one_draft_up_and_down_in_turn_with_a_gap_between_them() -> None:
    costs, candidates = costs_of(0.001), [Candidate(7, 99)]
    chosen = tried(DraftTries(3, costs), plan_of(candidates, 2, costs), candidates, 60)
    others = {step: depths[7] for step, depths in enumerate(chosen) if depths[7] != 2}
    steps = list(others)
    assert list(others.values())[:2] == [3, 1]
    assert {b - a for a, b in pairwise(steps)} == {12}


def test_none_is_drafted_for_several_steps_on_end() -> None:
    """The first one finds caches full of what drafts read."""
    costs, candidates = costs_of(0.1), [Candidate(7, 99)]
    chosen = tried(DraftTries(3, costs), plan_of(candidates, 1, costs), candidates, 900)
    runs = [run for run in "".join(str(depths[7]) for depths in chosen).replace("2", "1").split("1") if run]
    assert len(runs) > 2
    assert {len(run) for run in runs} == {3}


@pytest.mark.parametrize("draft_s", [0.6, 0.9])
def test_tries_lose_no_more_than_their_share_of_the_time(draft_s: float) -> None:
    costs, candidates = costs_of(draft_s), [Candidate(n, 99) for n in range(2)]
    plan, steps = plan_of(candidates, 0, costs), 4000
    lost = 0.0
    for depths in tried(DraftTries(3, costs), plan, candidates, steps):
        lost += costs.step_s(depths.values(), 0) - plan.gains.tokens(depths) / plan.best_rate
    # Two accounts of a step and a half each at first, and three thousandths of the time.
    assert 0.5 * 0.003 * steps < lost <= 2 * 1.5 + 0.003 * steps


def test_a_try_for_which_much_waits_goes_on_until_somebody_comes_or_there_is_no_room() -> None:
    costs = MeasuredCosts(PassCosts((1, 2, 8), (1.0, 1.0, 1.0), ((0.01, 0.001),)))
    one, both = [Candidate(0, 99, (400,))], [Candidate(0, 99, (400,)), Candidate(1, 99)]
    plan = plan_of(one, 0, costs)

    def begun() -> DraftTries:
        tries = DraftTries(1, costs)
        assert [depths[0] for depths in tried(tries, plan, one, 7)].count(1) == 2
        return tries

    assert tried(begun(), plan, one, 2) == [{0: 1}, {0: 1}]
    assert tried(begun(), plan_of(both, 0, costs), both, 2) == [{0: 0, 1: 0}] * 2
    assert tried(begun(), plan_of(one, 0, costs, most_rows=0), one, 2) == [{0: 0}] * 2
