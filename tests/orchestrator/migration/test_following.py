"""A run whose text changes, on a virtual clock: recorder, planner and migration together, against the replay.

Every token takes what the replay says of the plan in use, and a tenth more while experts load.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from orchestrator.cli.migration_planner import problem_of, propose
from orchestrator.migration.migration import (
    Give,
    Migration,
    MigrationAction,
    MigrationLimits,
    MigrationPhase,
    Moved,
    Proposal,
    Propose,
    Use,
)
from orchestrator.migration.online_routing import OnlineRouting
from placement.given.stats import RoutingStats
from placement.given.traces import CODING, GENERAL
from placement.holders import HolderTable
from placement.plan import Plan
from placement.replay.evaluate import evaluate
from tests.orchestrator.migration.test_planner import ROUTER, SHAPE, SIZE, planned_for

HEAD_S = 2e-4
LIMITS = MigrationLimits(check_s=1.0, payback_s=30.0, rate_bytes_per_s=20 * SIZE, patience_s=5.0)


class Run:
    """One run: its clock is the sum of its steps."""

    def __init__(self, plan: Plan, room: int = 1000, *, is_moving: bool = True) -> None:
        self.now_s = 0.0
        self.plan = replace(plan, epoch=1)
        self.routing = OnlineRouting(SHAPE.moe_layers, clock=lambda: self.now_s)
        rooms = {worker.name: room * SIZE for worker in plan.workers}
        self.migration = Migration(LIMITS, rooms, 0.0) if is_moving else None
        self.ends_s: list[float] = []
        self.due: list[tuple[float, int]] = []
        self.begun: list[tuple[float, Proposal]] = []
        self.tables: list[HolderTable] = []
        self.moved: list[Moved] = []

    def read(self, trace: NDArray[np.uint16]) -> None:
        problem = problem_of(self.plan, SHAPE, RoutingStats.from_trace(SHAPE, trace, "the text"))
        seconds: dict[int, NDArray[np.float64]] = {}
        for index, token in enumerate(trace.astype(np.int32)):
            if self.plan.epoch not in seconds:
                seconds[self.plan.epoch] = evaluate(problem, self.plan.holder_table, trace).moe_seconds
            step_s = HEAD_S + float(seconds[self.plan.epoch][index])
            is_loading = self.migration is not None and self.migration.state.phase is MigrationPhase.LOADING
            self.now_s += step_s * (1.1 if is_loading else 1.0)
            self.ends_s.append(self.now_s)
            if self.migration is not None:
                for row, layer in enumerate(SHAPE.moe_layers):
                    self.routing.record(layer, token[None, row])
                self.tick(self.migration)

    def tick(self, migration: Migration) -> None:
        for _, number in [order for order in self.due if order[0] <= self.now_s]:
            self.act(migration.ordered(number, missing_bytes=0, refusal="", now_s=self.now_s))
        self.due = [order for order in self.due if order[0] > self.now_s]
        look = self.routing.lately
        self.act(migration.tick(self.now_s, self.plan, self.plan.epoch, look, is_whole=True))

    def act(self, actions: list[MigrationAction]) -> None:
        assert self.migration is not None
        for action in actions:
            if isinstance(action, Propose):
                proposal = propose(action, SHAPE, LIMITS)
                more = self.migration.proposed(proposal, self.plan, self.now_s)
                if more:
                    self.begun.append((self.now_s, proposal))
                self.act(more)
            elif isinstance(action, Use):
                self.plan = action.plan
                self.tables.append(action.plan.holder_table)
            elif isinstance(action, Moved):
                self.moved.append(action)
                self.routing.planned()
            elif isinstance(action, Give) and not action.is_drop:
                num_bytes = SIZE * sum(len(some) for some in action.experts.values())
                self.due.append((self.now_s + num_bytes / action.rate_bytes_per_s, action.number))


@pytest.fixture(scope="module")
def plan() -> Plan:
    return planned_for(CODING)


def code_then_prose(num_prose: int) -> NDArray[np.uint16]:
    code = ROUTER.trace(CODING, 8 * 512, stream_seed=1)
    return np.concatenate([code, ROUTER.trace(GENERAL, num_prose, stream_seed=2)])


def test_a_move_comes_after_the_change_and_has_paid_when_it_was_said_to(plan: Plan) -> None:
    text = code_then_prose(30_000)
    moving, staying = Run(plan), Run(plan, is_moving=False)
    for run in (moving, staying):
        run.read(text)
    (began_s, proposal), *_ = moving.begun
    assert began_s > moving.ends_s[8 * 512]
    assert len(moving.moved) == 1
    assert proposal.payback_s is not None
    # Tokens that are ahead of, or behind, a run that does not move.
    ahead = np.arange(1, len(text) + 1) - np.searchsorted(staying.ends_s, moving.ends_s, side="right")
    since = np.array(moving.ends_s) - began_s
    assert (ahead[since < 0] == 0).all()
    assert ahead.min() < 0
    paid_s = float(since[np.flatnonzero(ahead < 0)[-1] + 1])
    assert paid_s == pytest.approx(proposal.payback_s, rel=0.3)
    assert ahead[-1] > 500


@pytest.mark.parametrize("room", [1, 3])
def test_with_little_room_the_same_move_goes_in_steps(plan: Plan, room: int) -> None:
    run = Run(plan, room)
    run.read(code_then_prose(12_000))
    assert len(run.moved) == 1
    assert len(run.tables) > 3
    assert run.tables[-1] == run.begun[0][1].target


def test_text_that_stays_as_it_is_moves_nothing_back(plan: Plan) -> None:
    run = Run(plan)
    run.read(code_then_prose(60_000))
    assert len(run.moved) == 1
    assert len(run.begun) == 1


def test_text_that_never_changes_moves_nothing(plan: Plan) -> None:
    run = Run(plan)
    run.read(ROUTER.trace(CODING, 60_000, stream_seed=4))
    assert not run.begun
    assert run.plan.holder_table == plan.holder_table
