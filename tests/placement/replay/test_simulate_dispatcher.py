"""The simulator's counts and times beside those of the dispatcher's own state machine, without sockets."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from orchestrator.dispatch.debts import Ask
from orchestrator.dispatch.layer_sum import Action, LayerSum
from orchestrator.dispatch.pace import Pace
from orchestrator.dispatch.pass_lost import PassLost
from orchestrator.dispatch.terms import Around, Terms
from placement.assign.one_step import assign_experts
from placement.errors import InputError
from placement.given.problem import PlanningDevice
from placement.message_size import MAX_MESSAGE_ROWS
from placement.patience import Patience
from placement.plan import Plan
from placement.replay.queueing.scenario import Stream, WorkerLoss
from placement.replay.queueing.simulation import simulate_queueing
from placement.replay.simulate import simulate_alone
from placement.replay.steps import Acceptance, step_blocks
from placement.replay.system import System
from placement.workload import Workload
from tests.examples import examples
from tests.placement.boxes import device
from tests.placement.runs import DEVICES, SHAPE, SIZE, random_plan, random_trace, system_of

# Answers are never late: the simulator knows no hedging.
PATIENT = Patience(hedge_floor_s=math.inf, slow_factor=math.inf)


@dataclass
class Run:
    """The dispatcher's decisions over a trace, on a cluster that takes the cost model's time.

    Counted as `Dispatcher` counts in its `Usage`. A box's devices work side by side and answer together.
    """

    system: System
    deaths: dict[int, float] = field(default_factory=dict)
    now_s: float = 0.0
    activations: list[int] = field(default_factory=list)
    experts_read: list[int] = field(default_factory=list)
    messages: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    remote_layers: int = 0
    num_passes: int = 0
    noticed_s: dict[int, float] = field(default_factory=dict)
    tier_of: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.activations, self.experts_read = ([0] * len(self.plan.workers) for _ in range(2))
        self.local = self.plan.local_worker
        # All layers of these plans are alike.
        wire = self.plan.wire_forms()[self.plan.moe_layers[0]]
        self.row_bytes = wire.row_bytes(SHAPE.hidden_size)
        self.first_tier = [worker.tiers[0] for worker in self.plan.workers]

    @property
    def plan(self) -> Plan:
        return self.system.plan

    def all_passes(self, *args: Any) -> None:
        for block in step_blocks(SHAPE, self.system.workload, *args):
            for expert_ids in block.expert_ids:
                for row in range(SHAPE.num_moe_layers):
                    self.now_s += float(self.system.before_s[row])
                    self.layer(row, expert_ids[row].astype(np.int32))
                self.now_s += self.system.after_s
                self.num_passes += 1

    def layer(self, row: int, expert_ids: NDArray[np.int32]) -> None:
        terms = Terms(
            names=[worker.name for worker in self.plan.workers],
            request_ids=count(1),
            coarser=lambda exponents: exponents,
            max_coarsenings=0,
            max_rows=MAX_MESSAGE_ROWS,
            patience=PATIENT,
            pace=Pace([(1.0, 1.0)] * len(self.plan.workers), PATIENT),
            local=self.local,
        )
        work = LayerSum(
            layer=SHAPE.moe_layers[row],
            expert_ids=expert_ids,
            scale_exponents=np.zeros(len(expert_ids), np.int32),
            hidden_size=1,
            choose=lambda ids, lost: self.choose(row, ids, lost),
            terms=terms,
            around=self.around(),
        )
        inbox: list[tuple[float, int, Ask]] = []
        order = count()
        head_free_s = self.now_s + float(self.system.rates.busy_s[self.system.head])

        def send(actions: list[Action]) -> None:
            nonlocal head_free_s
            for action in actions:
                assert isinstance(action, Ask)
                here = action.worker == self.local
                self.count(action, here)
                if here:
                    work_s = self.work_s(action)
                    head_free_s = max(head_free_s, self.now_s) + work_s.pop(self.system.local, 0.0)
                    done_s = max(head_free_s, *(self.now_s + s for s in work_s.values()), 0.0)
                    heapq.heappush(inbox, (done_s, next(order), action))
                    continue
                death_s = self.deaths.get(action.worker, np.inf)
                reached_s = self.reached_s(action)
                if reached_s + max(self.work_s(action).values()) <= death_s:
                    heapq.heappush(inbox, (self.now_s + self.answer_s(action), next(order), action))
                else:
                    self.noticed_s[action.worker] = PATIENT.gives_up_at_s(reached_s, death_s)

        send(work.begin(self.now_s))
        self.remote_layers += any(worker != self.local for worker in work.owing())
        while not work.finished:
            wake_s = min((s for s in self.noticed_s.values() if s > self.now_s), default=np.inf)
            if inbox and inbox[0][0] <= wake_s:
                self.now_s, _, action = heapq.heappop(inbox)
                if action.worker != self.local:
                    self.received_bytes += len(action.rows) * SHAPE.hidden_size * 4
                values = np.zeros((len(action.rows), 1), np.int32)
                send(
                    work.partial(
                        action.worker, action.request_id, values, np.zeros(len(values), np.bool_), self.now_s
                    )
                )
            else:
                self.now_s = wake_s
                send(work.tick(self.now_s, self.around()))
        self.now_s = max(self.now_s, head_free_s)

    def around(self) -> Around:
        """Dead workers that were asked, once their silence is noticed."""
        return Around(frozenset(w for w, at_s in self.noticed_s.items() if at_s <= self.now_s))

    def choose(self, row: int, expert_ids: NDArray[np.int32], lost: frozenset[int]) -> NDArray[np.integer]:
        """Workers, as `Dispatcher` chooses them; which of its tiers computes an expert is kept beside."""
        tiers = assign_experts(expert_ids, self.plan.without(lost).layers[row], self.plan.replica_costs)
        self.tier_of.update(zip(expert_ids.ravel().tolist(), tiers.ravel().tolist(), strict=True))
        return np.where(tiers < 0, tiers, self.plan.worker_of_tier[tiers])

    def count(self, ask: Ask, here: bool) -> None:
        pairs = ask.expert_ids[ask.expert_ids >= 0]
        self.activations[ask.worker] += len(pairs)
        self.experts_read[ask.worker] += len(set(pairs.tolist()))
        if not here:
            self.messages += 1
            self.sent_bytes += len(ask.rows) * self.row_bytes

    def answer_s(self, ask: Ask) -> float:
        """Seconds from a request to its answer."""
        rates, tier = self.system.rates, self.first_tier[ask.worker]
        wire_s = float(rates.round_trip_s[tier] + len(ask.rows) * rates.row_wire_s[tier])
        return wire_s + max(self.work_s(ask).values())

    def work_s(self, ask: Ask) -> dict[int, float]:
        """Of each of the worker's tiers that has something to do."""
        rates = self.system.rates
        pairs = ask.expert_ids[ask.expert_ids >= 0].tolist()
        found = {}
        for tier in {self.tier_of[expert] for expert in pairs}:
            mine = [expert for expert in pairs if self.tier_of[expert] == tier]
            found[tier] = float(max(len(set(mine)) * rates.read_s[tier], len(mine) * rates.compute_s[tier]))
        return found

    def reached_s(self, ask: Ask) -> float:
        """When the request is at its worker."""
        tier = self.first_tier[ask.worker]
        link_bytes_per_s = self.system.problem.devices[tier].link_bytes_per_s
        request_s = len(ask.rows) * self.system.message.request_bytes_per_row / link_bytes_per_s
        half_trip_s = float(self.system.rates.round_trip_s[tier]) / 2
        return self.now_s + request_s + half_trip_s


def in_box(name: str, worker: str, node: str, *args: Any, **kwargs: Any) -> PlanningDevice:
    """A device of tests.placement.boxes that shares its process with others."""
    alone = device(name, *args, **kwargs)
    return replace(alone, tier=replace(alone.tier, worker=worker, node=node))


# The head's process and one box have two devices each.
BOXES = (
    device("head", 30, SIZE, gbytes_per_s=0.01),
    in_box("study-ram", "head", "home", 30, SIZE, home=True, gbytes_per_s=0.008),
    in_box("den-gpu", "den", "den", 30, SIZE, gbytes_per_s=0.02, gbits_per_s=0.013),
    in_box("den-ram", "den", "den", 30, SIZE, gbytes_per_s=0.005, gbits_per_s=0.013),
    device("attic", 30, SIZE, gbytes_per_s=0.02, gbits_per_s=0.0017),
)


def assert_equal_counts(run: Run, counts: Any) -> None:
    assert counts.activations == tuple(run.activations)
    assert counts.experts_read == tuple(run.experts_read)
    for name in ("messages", "sent_bytes", "received_bytes", "remote_layers"):
        assert getattr(counts, name) == getattr(run, name), name


@given(
    seed=st.integers(0, 10_000),
    drafts=st.integers(0, 3),
    replicas=st.sampled_from([0.0, 0.3, 0.8]),
    dtype=st.sampled_from(["bfloat16", "float32"]),
    devices=st.sampled_from([DEVICES, BOXES]),
)
@examples(15)
def test_counts_equal_the_dispatchers(
    seed: int,
    drafts: int,
    replicas: float,
    dtype: str,
    devices: tuple[PlanningDevice, ...],
) -> None:
    plan = replace(random_plan(seed, devices, replica_chance=replicas), dtype=dtype)
    system = system_of(plan, devices, Workload(drafts=drafts))
    trace, luck = random_trace(seed, 60), Acceptance((0.8, 0.7, 0.6)[:drafts], seed)
    run = Run(system)
    run.all_passes([trace], luck)
    for report in (
        simulate_alone(system, [trace], luck),
        simulate_queueing(system, [Stream([trace], luck)]),
    ):
        assert_equal_counts(run, report.counts)
        assert report.duration_s == pytest.approx(run.now_s, rel=1e-9)


@given(
    seed=st.integers(0, 10_000),
    at=st.floats(0, 1),
    worker=st.sampled_from(["den", "attic"]),
    devices=st.sampled_from([DEVICES, BOXES]),
)
@examples(25)
def test_a_loss_is_noticed_and_mended_when_and_as_the_dispatcher_does(
    seed: int, at: float, worker: str, devices: tuple[PlanningDevice, ...]
) -> None:
    system = system_of(random_plan(seed, devices, replica_chance=0.6), devices, Workload(drafts=1))
    trace = random_trace(seed, 60)
    death_s = at * simulate_alone(system, [trace]).duration_s
    run = Run(system, {[w.name for w in system.plan.workers].index(worker): death_s})
    stopped = False
    try:
        run.all_passes([trace])
    except PassLost:
        stopped = True
    events = [WorkerLoss(worker, death_s)]
    if stopped and not run.num_passes:
        with pytest.raises(InputError, match="no step was finished"):
            simulate_queueing(system, [Stream([trace])], events)
        return
    report = simulate_queueing(system, [Stream([trace])], events)
    assert (report.stopped is not None) == stopped
    assert report.duration_s == pytest.approx(run.now_s, rel=1e-9)
    if not stopped:
        assert_equal_counts(run, report.counts)
    for lost_at_s in run.noticed_s.values():
        assert f"{lost_at_s:.3f} s: worker '{worker}' taken for lost" in report.notes
