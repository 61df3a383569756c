"""Rows are kept for drafts where these may soon be made, and nowhere else."""

from __future__ import annotations

from random import Random

import pytest

from orchestrator.model.rows_behind import CONTEXT_ROWS
from orchestrator.scheduling.candidate import Candidate
from orchestrator.scheduling.limits import Limits
from orchestrator.scheduling.native import DraftDepth, MeasuredCosts
from orchestrator.scheduling.step_plan import StepPlan
from placement.pass_costs import PassCosts
from tests.orchestrator.scheduling.engine import Engine, kv_budget, scheduler_of

LEAD = CONTEXT_ROWS + 1
"""Steps with rows before a draft: a step tells of the rows before it."""


class Traffic:
    """One answer after another, so many at a time; drafts hold with `chance`."""

    def __init__(self, users: int, tokens: int, chance: float) -> None:
        limits, kv = Limits(4096, sequences=8, pass_rows=64), kv_budget(100_000)
        self.engine = Engine(scheduler_of(limits, kv), limits, kv, Random(3), accept_chance=chance)
        self.users, self.tokens, self.number = users, tokens, 0

    def steps(self, count: int) -> list[StepPlan]:
        plans = []
        for _ in range(count):
            while len(self.engine.sequences) < self.users:
                self.engine.submit(self.number, "ada", 8, self.tokens)
                self.number += 1
            plans.append(self.engine.step())
            if not plans[-1].keeps_rows:
                # Whoever begins now keeps none either.
                assert not self.engine.scheduler.keeps_rows
        return plans


def drafts_of(plan: StepPlan) -> int:
    return sum(part.drafts for part in plan.decode)


@pytest.mark.parametrize(("users", "tokens"), [(1, 2000), (2, 150), (4, 90)])
def test_where_drafts_do_not_hold_rows_are_kept_before_tries_alone(users: int, tokens: int) -> None:
    plans = Traffic(users, tokens, 0.0).steps(4000)
    tries = [step for step, plan in enumerate(plans) if drafts_of(plan)]
    assert len(tries) > 5
    if users == 1:
        # Of several, one may have begun meanwhile, and drafts with all of its rows.
        kept = [max((at for at in range(step) if not plans[at].keeps_rows), default=-1) for step in tries]
        assert min(step - 1 - last for step, last in zip(tries, kept, strict=True) if last >= 0) == LEAD
    assert 0 < sum(plan.keeps_rows for plan in plans[1000:]) < 0.7 * len(plans[1000:])


@pytest.mark.parametrize(("users", "tokens"), [(1, 2000), (2, 150), (4, 90)])
def test_drafts_begin_again_where_they_come_to_hold(users: int, tokens: int) -> None:
    """No sequence drafts before it has rows: the engine says so."""
    traffic = Traffic(users, tokens, 0.0)
    traffic.steps(1500)
    traffic.engine.accept_chance = 0.95
    traffic.steps(1500)
    plans = traffic.steps(200)
    assert all(plan.keeps_rows for plan in plans)
    assert sum(drafts_of(plan) > 0 for plan in plans) > 100


def test_rows_are_kept_for_a_while_after_drafts_stopped_to_pay() -> None:
    traffic = Traffic(1, 4000, 0.95)
    assert drafts_of(traffic.steps(300)[-1])
    traffic.engine.accept_chance = 0.0
    plans = traffic.steps(600)
    last = max(step for step, plan in enumerate(plans[:200]) if drafts_of(plan) > 1)
    assert all(plan.keeps_rows for plan in plans[last : last + 100])
    assert not all(plan.keeps_rows for plan in plans)


def test_one_that_may_not_draft_keeps_nobody_else_from_trying() -> None:
    """It has too few rows, as those have that go on from a text without rows and end soon."""

    def tries(candidates: list[Candidate]) -> int:
        depth = DraftDepth(3, MeasuredCosts(PassCosts((1, 2, 8), (1.0, 1.0, 1.0), ((0.9, 0.0),) * 3)))
        found = 0
        for _ in range(4000):
            chosen = depth.choose(candidates)
            found += any(chosen.values())
            depth.learn([])
        return found

    able, unable = Candidate(0, 99, (64,) * 3), Candidate(1, 0)
    # Another one beside takes time, and so do tries.
    assert tries([able, unable]) > 0.3 * tries([able]) > 3


def test_how_many_rows_drafts_wait_for_is_the_same_for_all() -> None:
    assert DraftDepth(1, MeasuredCosts(PassCosts((1,), (1.0,), ((0.1, 0.0),)))).context_rows == CONTEXT_ROWS
