"""Experts move while passes run: under a virtual clock, with losses on the way, nobody is asked in vain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from orchestrator.membership.rescue import BoxRoom, Rescue, next_plan
from orchestrator.migration.batches import next_batch
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
from orchestrator.migration.online_routing import Lately
from placement.experts import Experts
from placement.holders import HolderTable
from placement.plan import Plan
from tests.orchestrator.random_plan import random_plan
from tests.placement.shapes import small_shape

SHAPE = small_shape(num_moe_layers=3, num_experts=12)
SIZE = SHAPE.expert_bytes(32)
LIMITS = MigrationLimits(check_s=5.0, payback_s=100.0, rate_bytes_per_s=20 * SIZE, patience_s=20.0)
STEP_S = 0.05
PIECES = (np.zeros((4, 3, 2), dtype=np.uint16),)
TEXT = Lately(PIECES, PIECES)

Cells = set[tuple[int, int]]


def cells(experts: Experts) -> Cells:
    return {(layer, expert) for layer, some in experts.items() for expert in some}


class World:
    """Workers, passes in flight, a membership that rescues, and a migration, on one clock.

    Holding takes the time of its bytes; every pass checks that each worker it may ask holds what it should.
    """

    def __init__(self, plan: Plan, target: HolderTable, room: int, seed: int, losses: int = 0) -> None:
        self.draws = np.random.default_rng(seed)
        self.now_s = 0.0
        self.plan = plan
        self.target = target
        self.names = [worker.name for worker in plan.workers]
        self.held = {name: cells(plan.experts_of(name)) for name in self.names}
        self.room = dict.fromkeys(self.names, room * SIZE)
        self.migration = Migration(LIMITS, self.room, 0.0)
        self.flying: list[tuple[float, Plan, frozenset[int]]] = []
        self.later: list[tuple[float, Callable[[], None]]] = []
        self.lost: frozenset[int] = frozenset()
        self.losses_left = losses
        self.moved: list[Moved] = []
        self.drops: list[tuple[int, str, Cells]] = []
        self.most_held = dict.fromkeys(self.names, 0)
        self.proposals = 0
        self._boxes: dict[int, list[Cells]] = {}

    def boxes(self, plan: Plan) -> list[Cells]:
        """What each worker holds in a plan; each epoch has one."""
        if plan.epoch not in self._boxes:
            self._boxes[plan.epoch] = boxes_of(plan)
        return self._boxes[plan.epoch]

    def at(self, after_s: float, what: Callable[[], None]) -> None:
        self.later.append((self.now_s + after_s, what))

    def run(self, seconds: float) -> None:
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            self.now_s += STEP_S
            due = [what for at_s, what in self.later if at_s <= self.now_s]
            self.later = [(at_s, what) for at_s, what in self.later if at_s > self.now_s]
            for what in due:
                what()
            self.flying = [flight for flight in self.flying if flight[0] > self.now_s]
            if self.draws.random() < 0.5:
                self.flying.append((self.now_s + self.draws.exponential(0.2), self.plan, self.lost))
            self.let_go()
            oldest = min([plan.epoch for _, plan, _ in self.flying] + [self.plan.epoch])
            self.act(self.migration.tick(self.now_s, self.plan, oldest, lambda: TEXT, is_whole=not self.lost))
            self.lose_or_find()
            self.check()

    def act(self, actions: list[MigrationAction]) -> None:
        for action in actions:
            if isinstance(action, Propose):
                self.at(self.draws.exponential(1.0), self.answer)
            elif isinstance(action, Use):
                assert action.plan.epoch == self.plan.epoch + 1
                self.plan = action.plan
            elif isinstance(action, Give):
                self.at(self.draws.exponential(0.05), partial(self.begin, action))
            else:
                self.moved.append(action)

    def answer(self) -> None:
        self.proposals += 1
        proposal = Proposal("the traffic has changed", self.target, 0.001, 10.0)
        self.act(self.migration.proposed(proposal, self.plan, self.now_s))

    def begin(self, give: Give) -> None:
        """A worker carries out its orders at its own pace, lost or not."""
        wanted = cells(give.experts)
        if give.is_drop:
            self.held[give.worker] -= wanted
            self.done(give)
            return
        self.held[give.worker] |= wanted
        self.most_held[give.worker] = max(self.most_held[give.worker], len(self.held[give.worker]))
        self.at(len(wanted) * SIZE / give.rate_bytes_per_s, lambda: self.done(give))

    def done(self, give: Give) -> None:
        self.act(self.migration.ordered(give.number, missing_bytes=0, refusal="", now_s=self.now_s))

    def lose_or_find(self) -> None:
        if self.lost and self.draws.random() < 0.02:
            self.rescue(frozenset())
        elif self.losses_left and not self.lost and self.draws.random() < 0.01:
            self.losses_left -= 1
            self.rescue(frozenset({int(self.draws.integers(1, len(self.names)))}))

    def rescue(self, lost: frozenset[int]) -> None:
        """As membership does: orders are taken at once; drops wait until no older plan is in flight."""
        self.lost = lost
        room = {index: BoxRoom(1e9, 10**9) for index in range(len(self.names))}
        found: Rescue = next_plan(self.plan, lost, room)
        for index, experts in found.holds.items():
            self.held[self.names[index]] |= cells(experts)
        self.plan = found.plan
        for index, experts in found.drops.items():
            self.drops.append((found.plan.epoch, self.names[index], cells(experts)))

    def let_go(self) -> None:
        oldest = min([plan.epoch for _, plan, _ in self.flying] + [self.plan.epoch])
        for _, name, wanted in [drop for drop in self.drops if drop[0] <= oldest]:
            self.held[name] -= wanted - self.boxes(self.plan)[self.names.index(name)]
        self.drops = [drop for drop in self.drops if drop[0] > oldest]

    def check(self) -> None:
        """Whoever may be asked, by a pass in flight or by the next, holds what it is asked for."""
        for plan, lost in [(self.plan, self.lost), *((plan, lost) for _, plan, lost in self.flying)]:
            boxes = self.boxes(plan)
            for index, name in enumerate(self.names):
                if index not in lost:
                    missing = boxes[index] - self.held[name]
                    assert not missing, f"{self.now_s:.2f} s, epoch {plan.epoch}: {name} lacks {missing}"


def plans(seed: int) -> tuple[Plan, HolderTable]:
    plan = random_plan(SHAPE, 3, seed, replicas=0.2)
    target = random_plan(SHAPE, 3, seed + 1000, replicas=0.2).holder_table
    return replace(plan, epoch=0), target


def boxes_of(plan: Plan) -> list[Cells]:
    return [cells(plan.experts_of(worker.name)) for worker in plan.workers]


@pytest.mark.parametrize("seed", range(12))
def test_all_experts_come_to_where_they_should_be_and_nobody_is_asked_in_vain(seed: int) -> None:
    plan, target = plans(seed)
    room = 1 + seed % 5
    world = World(plan, target, room, seed)
    world.run(120.0)
    assert world.plan.holder_table == target
    assert boxes_of(world.plan) == [world.held[name] for name in world.names]
    assert world.moved[0].num_experts > 0
    assert world.migration.state.phase in (MigrationPhase.WATCHING, MigrationPhase.PLANNING)
    assert world.plan.epoch > 1


@pytest.mark.parametrize("seed", range(12))
def test_losses_on_the_way_never_leave_a_worker_without_what_it_is_asked_for(seed: int) -> None:
    plan, target = plans(seed)
    world = World(plan, target, 3, seed, losses=4)
    world.run(240.0)
    # All have come back long ago: the move was taken up again and has ended.
    assert not world.lost
    assert not world.losses_left
    first = world.plan.holder_table.masks(len(world.plan.tiers))[: len(plan.tiers)]
    assert (first == target.masks(len(plan.tiers))).all()
    assert boxes_of(world.plan) == [world.held[name] for name in world.names]


def test_no_step_needs_more_memory_than_there_is() -> None:
    plan, target = plans(3)
    room = {worker.name: 2 * SIZE for worker in plan.workers}
    steps = 0
    while (batch := next_batch(plan, target, room)) is not None:
        steps += 1
        for name, experts in batch.holds.items():
            assert len(cells(experts)) <= 2
            assert not cells(experts) & cells(plan.experts_of(name))
        assert batch.num_experts == sum(len(cells(experts)) for experts in batch.holds.values())
        assert batch.num_bytes == batch.num_experts * SIZE
        assert batch.plan.epoch == plan.epoch + 1
        plan = batch.plan
    assert steps > 3
    assert plan.holder_table == target
    assert next_batch(plans(3)[0], target, {}) is not None  # what only lets go of copies needs none


def one_move(limits: MigrationLimits = LIMITS) -> tuple[Migration, Plan, HolderTable]:
    plan, target = plans(0)
    migration = Migration(limits, {w.name: 10**9 for w in plan.workers}, 0.0)
    (asked,) = migration.tick(6.0, plan, 0, lambda: TEXT, is_whole=True)
    assert isinstance(asked, Propose)
    return migration, plan, target


@pytest.mark.parametrize(
    ("proposal", "reason"),
    [
        (Proposal("no change is seen", p_value=0.4), "no change is seen"),
        (Proposal("changed", HolderTable.from_single(np.zeros((3, 12), np.int64)), 0.001, None), "pay never"),
        (
            Proposal("changed", HolderTable.from_single(np.zeros((3, 12), np.int64)), 0.001, 101.0),
            "changed; not worth a move: it would pay after 101 s, not within 100 s",
        ),
    ],
)
def test_what_does_not_pay_in_time_is_left_and_the_reason_is_told(proposal: Proposal, reason: str) -> None:
    migration, plan, _ = one_move()
    assert migration.proposed(proposal, plan, 7.0) == []
    assert migration.state.phase is MigrationPhase.WATCHING
    assert reason in migration.state.reason
    assert migration.state.p_value == proposal.p_value
    assert migration.tick(11.9, plan, 0, lambda: TEXT, is_whole=True) == []
    assert len(migration.tick(12.1, plan, 0, lambda: TEXT, is_whole=True)) == 1


def test_a_move_without_memory_on_its_way_or_without_a_step_is_none() -> None:
    plan, _ = plans(0)
    single = HolderTable.from_single(plan.holder_table.table[:, :, 0])
    plan = replace(plan, holder_table=single)
    other = HolderTable.from_single((single.table[:, :, 0] + 1) % 3)
    for wanted, why in ((other, "no box has memory for a single expert"), (single, "all are there already")):
        migration = Migration(LIMITS, {}, 0.0)
        migration.tick(6.0, plan, 0, lambda: TEXT, is_whole=True)
        assert migration.proposed(Proposal("changed", wanted, 0.001, 10.0), plan, 7.0) == []
        assert migration.state.phase is MigrationPhase.WATCHING
        assert why in migration.state.reason


def test_nothing_begins_while_a_worker_is_lost_or_before_there_is_text() -> None:
    plan, _ = plans(0)
    migration = Migration(LIMITS, {}, 0.0)
    assert migration.tick(6.0, plan, 0, lambda: TEXT, is_whole=False) == []
    little = replace(TEXT, since=PIECES[:0])
    assert migration.tick(6.1, plan, 0, lambda: little, is_whole=True) == []
    assert migration.state.reason == "too little text yet to see a change"


@pytest.mark.parametrize("how", ["no memory", "refused", "too long"])
def test_a_step_that_does_not_come_about_is_undone(how: str) -> None:
    migration, plan, target = one_move()
    gives = migration.proposed(Proposal("changed", target, 0.001, 10.0), plan, 7.0)
    assert gives
    assert all(isinstance(give, Give) and give.rate_bytes_per_s == LIMITS.rate_bytes_per_s for give in gives)
    first = gives[0]
    assert isinstance(first, Give)
    if how == "too long":
        undone = migration.tick(1000.0, plan, 0, lambda: TEXT, is_whole=True)
    else:
        missing, refusal = (SIZE, "") if how == "no memory" else (0, "worker attic: no model file")
        undone = migration.ordered(first.number, missing_bytes=missing, refusal=refusal, now_s=8.0)
    assert {give.worker: give.experts for give in undone if isinstance(give, Give) and give.is_drop} == {
        give.worker: give.experts for give in gives if isinstance(give, Give)
    }
    assert migration.state.phase is MigrationPhase.WATCHING
    assert "given up: " in migration.state.reason


def test_a_run_that_ends_on_the_way_says_so() -> None:
    migration, plan, target = one_move()
    migration.end(6.5)
    assert migration.state.phase is MigrationPhase.WATCHING
    assert migration.state.reason == "the run ended before the planner had an answer"
    migration, plan, target = one_move()
    migration.proposed(Proposal("changed", target, 0.001, 10.0), plan, 7.0)
    migration.end(7.5)
    assert migration.state.phase is MigrationPhase.WATCHING
    assert migration.state.reason == "changed; the run ended on the way"
    before = migration.state
    migration.end(8.0)
    assert migration.state is before
