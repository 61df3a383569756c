"""The simulator's counts and times beside those of the dispatcher's own state machine, without sockets."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from orchestrator.layer_sum import Action, Ask, LayerSum, Probe
from placement.assign.one_step import assign_experts
from placement.errors import InputError, WorkerLost
from placement.message_size import MAX_MESSAGE_ROWS
from placement.patience import Patience
from placement.plan import Plan
from placement.replay.queueing.scenario import Stream, WorkerLoss
from placement.replay.queueing.simulation import simulate_queueing
from placement.replay.simulate import simulate_alone
from placement.replay.steps import Acceptance, step_blocks
from placement.replay.system import System
from placement.workload import Workload
from tests.placement.runs import SHAPE, random_plan, random_trace, system_of


@dataclass
class Run:
    """The dispatcher's decisions over a trace, on a cluster that takes the cost model's time.

    Counted as `Dispatcher` counts in its `Usage`.
    """

    system: System
    deaths: dict[int, float] = field(default_factory=dict)
    now_s: float = 0.0
    lost: set[int] = field(default_factory=set)
    activations: list[int] = field(default_factory=list)
    messages: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    remote_layers: int = 0
    num_passes: int = 0
    lost_at_s: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.activations = [0] * len(self.plan.tiers)

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
        holders_of = self.plan.holder_table.without
        work = LayerSum(
            layer=SHAPE.moe_layers[row],
            expert_ids=expert_ids,
            scale_exponents=np.zeros(len(expert_ids), np.int32),
            hidden_size=1,
            names=[worker.name for worker in self.plan.tiers],
            choose=lambda ids, lost: assign_experts(
                ids, holders_of(lost).layers[row], self.plan.replica_costs
            ),
            request_ids=count(1),
            coarser=lambda exponents: exponents,
            max_coarsenings=0,
            max_rows=MAX_MESSAGE_ROWS,
            patience=Patience(),
            lost=self.lost,
        )
        inbox: list[tuple[float, int, Ask | Probe]] = []
        order = count()
        head_free_s = self.now_s + float(self.system.rates.busy_s[self.system.head])

        def send(actions: list[Action]) -> None:
            nonlocal head_free_s
            for action in actions:
                here = action.worker == self.system.local
                if isinstance(action, Ask):
                    seconds = self.count(action, here)
                    if here:
                        head_free_s = max(head_free_s, self.now_s) + seconds
                        heapq.heappush(inbox, (head_free_s, next(order), action))
                        continue
                    reached_s = self.now_s + seconds
                else:
                    reached_s = self.now_s + float(self.system.rates.round_trip_s[action.worker]) / 2
                death_s = self.deaths.get(action.worker, np.inf)
                alive = (reached_s if isinstance(action, Probe) else self.done_s(action)) < death_s
                if alive:
                    trip_s = float(self.system.rates.round_trip_s[action.worker])
                    arrives_s = self.now_s + trip_s if isinstance(action, Probe) else reached_s
                    heapq.heappush(inbox, (arrives_s, next(order), action))

        send(work.begin(self.now_s))
        self.remote_layers += any(worker != self.system.local for worker in work.owing())
        while not work.finished:
            wake_s = work.wake_at_s()
            if inbox and inbox[0][0] <= wake_s:
                self.now_s, _, action = heapq.heappop(inbox)
                if isinstance(action, Probe):
                    work.heard(action.worker, self.now_s)
                    continue
                if action.worker != self.system.local:
                    self.received_bytes += len(action.rows) * SHAPE.hidden_size * 4
                values = np.zeros((len(action.rows), 1), np.int32)
                send(
                    work.partial(
                        action.worker, action.request_id, values, np.zeros(len(values), np.bool_), self.now_s
                    )
                )
            else:
                self.now_s = wake_s
                before = set(self.lost)
                send(work.tick(self.now_s))
                self.lost_at_s.update(dict.fromkeys(self.lost - before, self.now_s))
        self.now_s = max(self.now_s, head_free_s)

    def count(self, ask: Ask, here: bool) -> float:
        """Count a request; seconds from now until its answer is back."""
        self.activations[ask.worker] += int(np.count_nonzero(ask.expert_ids >= 0))
        work_s = self.work_s(ask)
        if here:
            return work_s
        self.messages += 1
        self.sent_bytes += len(ask.rows) * SHAPE.hidden_size * self.system.workload.bytes_per_activation
        rates = self.system.rates
        wire_s = float(rates.round_trip_s[ask.worker] + len(ask.rows) * rates.row_wire_s[ask.worker])
        return wire_s + work_s

    def work_s(self, ask: Ask) -> float:
        pairs = ask.expert_ids[ask.expert_ids >= 0]
        rates = self.system.rates
        read_s = len(set(pairs.tolist())) * rates.read_s[ask.worker]
        return float(max(read_s, len(pairs) * rates.compute_s[ask.worker]))

    def done_s(self, ask: Ask) -> float:
        """When its worker has finished; the way back is left."""
        link_bytes_per_s = self.system.problem.devices[ask.worker].link_bytes_per_s
        request_s = len(ask.rows) * self.system.message.request_bytes_per_row / link_bytes_per_s
        half_trip_s = float(self.system.rates.round_trip_s[ask.worker]) / 2
        return self.now_s + request_s + half_trip_s + self.work_s(ask)


def assert_equal_counts(run: Run, counts: Any) -> None:
    assert counts.activations == tuple(run.activations)
    for name in ("messages", "sent_bytes", "received_bytes", "remote_layers"):
        assert getattr(counts, name) == getattr(run, name), name


@given(
    seed=st.integers(0, 10_000),
    drafts=st.integers(0, 3),
    replicas=st.sampled_from([0.0, 0.3, 0.8]),
    bytes_per_activation=st.sampled_from([2, 4]),
)
@settings(max_examples=25, deadline=None)
def test_counts_equal_the_dispatchers(
    seed: int, drafts: int, replicas: float, bytes_per_activation: int
) -> None:
    workload = Workload(drafts=drafts, bytes_per_activation=bytes_per_activation)
    system = system_of(random_plan(seed, replica_chance=replicas), workload=workload)
    trace, luck = random_trace(seed, 60), Acceptance((0.8, 0.7, 0.6)[:drafts], seed)
    run = Run(system)
    run.all_passes([trace], luck)
    for report in (
        simulate_alone(system, [trace], luck),
        simulate_queueing(system, [Stream([trace], luck)]),
    ):
        assert_equal_counts(run, report.counts)
        assert report.duration_s == pytest.approx(run.now_s, rel=1e-9)


@given(seed=st.integers(0, 10_000), at=st.floats(0, 1), worker=st.sampled_from(["den", "attic"]))
@settings(max_examples=40, deadline=None)
def test_a_loss_is_noticed_and_mended_when_and_as_the_dispatcher_does(
    seed: int, at: float, worker: str
) -> None:
    system = system_of(random_plan(seed, replica_chance=0.6), workload=Workload(drafts=1))
    trace = random_trace(seed, 60)
    death_s = at * simulate_alone(system, [trace]).duration_s
    run = Run(system, {system.plan.tier_index(worker): death_s})
    stopped = False
    try:
        run.all_passes([trace])
    except WorkerLost:
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
    for lost_at_s in run.lost_at_s.values():
        assert f"{lost_at_s:.3f} s: worker '{worker}' taken for lost" in report.notes
