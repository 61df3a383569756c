"""Workers lost and plans changed while streams run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from placement.errors import InputError, PlanError
from placement.holders import HolderTable
from placement.patience import Patience
from placement.plan import Plan
from placement.replay.queueing.scenario import NewPlan, Stream, WorkerLoss
from placement.replay.queueing.simulation import simulate_queueing
from placement.replay.queueing.transfers import Transfer, transfers
from placement.replay.simulate import simulate_alone
from placement.replay.steps import split_trace
from placement.units import size
from tests.placement.runs import DEVICES, SIZE, plan_of, random_plan, random_trace, system_of
from tests.placement.shapes import small_shape


def everywhere(*workers: int) -> Plan:
    masks = np.zeros((3, 3, 10), dtype=np.bool_)
    masks[list(workers)] = True
    return plan_of(HolderTable.from_masks(masks))


def test_a_lost_worker_with_replicas_costs_its_silence_once() -> None:
    system, trace = system_of(everywhere(1, 2)), random_trace(0, 100)
    whole = simulate_alone(system, [trace])
    report = simulate_queueing(system, [Stream([trace])], [WorkerLoss("den", whole.duration_s / 2)])
    assert report.stopped is None
    assert report.num_tokens == 100
    assert report.step_time_s.max == pytest.approx(0.25, abs=0.05)
    assert report.step_time_s.p95 < 0.05
    # Each expert of the layer that was on its way counts twice: the dispatcher asked twice.
    assert 900 < sum(report.counts.activations) <= 900 + 3
    assert [note.split(": ")[1] for note in report.notes] == [
        "worker 'den' stopped answering",
        "worker 'den' taken for lost",
    ]


def test_a_lost_worker_without_replicas_ends_the_run_and_the_report_says_so() -> None:
    system, trace = system_of(random_plan(0)), random_trace(0, 100)
    half_s = simulate_alone(system, [trace]).duration_s / 2
    report = simulate_queueing(system, [Stream([trace])], [WorkerLoss("den", half_s)])
    assert 30 < report.num_tokens < 70
    assert report.stopped is not None
    assert "lost worker 'den' held it and no other worker does; plan with replicas" in report.stopped
    assert report.duration_s == pytest.approx(half_s + 0.25, abs=0.05)


def test_a_worker_that_nobody_needs_may_go() -> None:
    system, trace = system_of(everywhere(0)), random_trace(0, 50)
    report = simulate_queueing(system, [Stream([trace])], [WorkerLoss("den", 0.0)])
    assert report.duration_s == pytest.approx(simulate_alone(system, [trace]).duration_s)


def test_every_stream_in_flight_waits_but_later_ones_know() -> None:
    system = system_of(everywhere(1, 2))
    parts = split_trace(random_trace(0, 90), 3)
    streams = [Stream([parts[0]]), Stream([parts[1]]), Stream([parts[2]], start_s=10.0)]
    report = simulate_queueing(system, streams, [WorkerLoss("den", 0.01)], Patience(suspect_after_s=2.0))
    assert report.num_tokens == 90
    assert report.duration_s < 10.5


def test_others_are_asked_after_a_silence_or_at_once_if_it_has_lasted() -> None:
    patience = Patience(suspect_after_s=0.25)
    assert patience.gives_up_at_s(1.0, dead_s=1.5) == 1.75
    assert patience.gives_up_at_s(1.0, dead_s=0.9) == pytest.approx(1.15)
    assert patience.gives_up_at_s(1.0, dead_s=0.2) == 1.0


def test_a_new_plan_moves_its_bytes_and_then_serves() -> None:
    old, new = everywhere(1), replace(everywhere(0, 1), epoch=1)
    system, trace = system_of(old), random_trace(0, 400)
    report = simulate_queueing(system, [Stream([trace])], [NewPlan(new, at_s=0.05, chunk_bytes=1000)])
    moved_bytes = 30 * SIZE
    without = simulate_alone(system, [trace])
    message_bytes = report.counts.sent_bytes // 32 * (32 + 24 + 4) + report.counts.received_bytes // 64 * 65
    assert report.bytes_moved == message_bytes + moved_bytes
    assert report.notes[0] == f"0.050 s: new plan: 30 experts, {size(moved_bytes)} to move"
    assert report.notes[1].endswith("new plan in use")
    # The wire alone needs this long; requests share it.
    in_use_s = float(report.notes[1].split()[0])
    assert in_use_s >= 0.05 + moved_bytes / DEVICES[1].link_bytes_per_s
    assert report.counts.activations[0] > 0
    assert report.duration_s < without.duration_s
    assert all(share <= 1 for share in report.busy.values())


def test_small_chunks_let_requests_pass_and_a_rate_spreads_the_move() -> None:
    old, new = everywhere(1), everywhere(0, 1)
    system, trace = system_of(old), random_trace(0, 400)

    def slowest(**options: float) -> tuple[float, float]:
        report = simulate_queueing(system, [Stream([trace])], [NewPlan(new, 0.0, **options)])  # type: ignore[arg-type]
        return report.step_time_s.max, float(report.notes[-1].split()[0])

    coarse, fine, throttled = slowest(chunk_bytes=10**6), slowest(chunk_bytes=100), slowest(bytes_per_s=5e4)
    assert fine[0] < coarse[0]
    assert throttled[1] == pytest.approx(30 * SIZE / 5e4, rel=0.05)


def test_a_new_plan_is_given_up_when_a_worker_it_needs_is_lost() -> None:
    system, trace = system_of(everywhere(0, 1)), random_trace(0, 200)
    events = [NewPlan(everywhere(0, 1, 2), 0.0, bytes_per_s=1e4), WorkerLoss("attic", 0.01)]
    report = simulate_queueing(system, [Stream([trace])], events)
    assert report.notes[-1].endswith("new plan given up: worker 'attic' was lost on the way")
    assert report.num_tokens == 200


def test_plans_follow_each_other() -> None:
    system, trace = system_of(everywhere(1)), random_trace(0, 400)
    events = [NewPlan(everywhere(1, 2), 0.0), NewPlan(everywhere(0), 0.001)]
    report = simulate_queueing(system, [Stream([trace])], events)
    assert [note.endswith("new plan in use") for note in report.notes] == [False, True, False, True]
    assert report.counts.activations[0] > 0


def test_transfers_come_from_the_same_box_where_it_has_them() -> None:
    near = (DEVICES[0], DEVICES[1], replace(DEVICES[2], tier=replace(DEVICES[2].tier, node="den")))
    old = plan_of(HolderTable.from_single(np.tile([0, 1], 15).reshape(3, 10)), near)
    masks = np.stack([old.holder_table.mask(worker) for worker in range(3)])
    masks[:2, 0] = True
    masks[2, 2, :2] = True
    new = plan_of(HolderTable.from_masks(masks), near)
    found = transfers(old, new)
    assert len(found) == 12
    assert found[0] == Transfer(row=0, expert=1, source=1, destination=0)
    assert found[-2:] == (Transfer(2, 0, 0, 2), Transfer(2, 1, 1, 2))
    assert transfers(old, old) == ()


def test_events_that_do_not_go_with_the_plan_are_refused() -> None:
    system, streams = system_of(random_plan(0)), [Stream([random_trace(0, 5)])]
    with pytest.raises(InputError, match="'head' is the head's own process"):
        simulate_queueing(system, streams, [WorkerLoss("head", 1.0)])
    with pytest.raises(PlanError, match=r"expected the workers of the running one \(head, den, attic\)"):
        simulate_queueing(system, streams, [NewPlan(random_plan(0, DEVICES[:2]), 1.0)])
    plan = random_plan(0)
    moved = replace(plan, tiers=(*plan.tiers[:-1], replace(plan.tiers[-1], worker="other")))
    with pytest.raises(PlanError, match=r"expected the workers of the running one .*with the same devices"):
        simulate_queueing(system, streams, [NewPlan(moved, 1.0)])
    other = small_shape(num_moe_layers=3, num_experts=12, top_k=3)
    foreign = plan_of(
        HolderTable.from_single(np.zeros((3, 12), dtype=np.int64)), shape=replace(other, hidden_size=8)
    )
    with pytest.raises(PlanError, match="new plan: expected one for small with experts in bfloat16 of"):
        simulate_queueing(system, streams, [NewPlan(foreign, 1.0)])
    with pytest.raises(InputError, match="loss of worker 'den': expected a time of at least 0"):
        WorkerLoss("den", -1.0)
    with pytest.raises(InputError, match="positive rate and chunk size"):
        NewPlan(random_plan(0), 1.0, bytes_per_s=0)
