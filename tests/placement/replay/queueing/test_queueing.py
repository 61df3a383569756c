"""Streams that share a cluster: the closed form where they cannot meet, laws of queues where they do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.errors import InputError, PlanError
from placement.holders import HolderTable
from placement.replay.queueing.scenario import Stream, WorkerLoss
from placement.replay.queueing.simulation import simulate_queueing
from placement.replay.simulate import simulate_alone
from placement.replay.steps import Acceptance, split_trace
from placement.replay.tally import QUEUE
from placement.workload import Workload
from tests.examples import examples
from tests.placement.boxes import device
from tests.placement.replay.test_simulate import figures
from tests.placement.runs import DEVICES, plan_of, random_plan, random_trace, system_of
from tests.placement.shapes import small_shape

BEHIND_ONE_LINK = (
    DEVICES[0],
    replace(DEVICES[1], tier=replace(DEVICES[1].tier, node="attic"), link_bytes_per_s=125e3),
    DEVICES[2],
)


@given(seed=st.integers(0, 1000), drafts=st.integers(0, 2), replicas=st.booleans(), headless=st.booleans())
@examples(30)
def test_one_stream_takes_the_time_of_the_closed_form(
    seed: int, drafts: int, replicas: bool, headless: bool
) -> None:
    plan = random_plan(seed, DEVICES[headless:], replica_chance=0.4 if replicas else 0)
    system = system_of(plan, workload=Workload(drafts=drafts, context=50))
    trace, luck = random_trace(seed, 150), Acceptance((0.7, 0.5)[:drafts], seed)
    alone = simulate_alone(system, [trace], luck)
    queued = simulate_queueing(system, [Stream([trace], luck)])
    assert queued.duration_s == pytest.approx(alone.duration_s, rel=1e-9)
    for name in ("mean", "min", "max"):
        assert getattr(queued.step_time_s, name) == pytest.approx(getattr(alone.step_time_s, name), rel=1e-9)
    assert queued.counts == alone.counts
    assert queued.bytes_by_link == alone.bytes_by_link
    assert queued.remote_layers_per_token == alone.remote_layers_per_token
    assert queued.busy == pytest.approx(alone.busy, rel=1e-9)
    assert queued.bound_by_device == pytest.approx(alone.bound_by_device)
    assert queued.bound_by_cause == pytest.approx(alone.bound_by_cause)


@given(seed=st.integers(0, 1000), streams=st.integers(2, 5), one_link=st.booleans())
@examples(20)
def test_streams_keep_the_laws_of_conservation(seed: int, streams: int, one_link: bool) -> None:
    devices = BEHIND_ONE_LINK if one_link else DEVICES
    system = system_of(random_plan(seed, devices, replica_chance=0.2), devices)
    parts = split_trace(random_trace(seed, 30 * streams), streams)
    report = simulate_queueing(system, [Stream([part]) for part in parts])
    runs_alone = [simulate_alone(system, [part]) for part in parts]
    assert report.num_steps == 30 * streams
    assert all(0 <= share <= 1 + 1e-9 for share in report.busy.values())
    assert report.bytes_moved == sum(report.bytes_by_link.values()) == sum(r.bytes_moved for r in runs_alone)
    assert report.counts.messages == sum(run.counts.messages for run in runs_alone)
    assert report.counts.activations == tuple(np.sum([r.counts.activations for r in runs_alone], axis=0))
    # Sharing helps the throughput and cannot help a pass.
    assert report.duration_s <= sum(run.duration_s for run in runs_alone) * (1 + 1e-9)
    assert report.step_time_s.min >= min(run.step_time_s.min for run in runs_alone) * (1 - 1e-9)


def test_more_streams_come_closer_to_what_the_busiest_part_can_carry() -> None:
    system = system_of(random_plan(1))
    trace = random_trace(1, 240)
    rates, busiest = [], []
    for streams in (1, 2, 4, 8):
        parts = [Stream([part]) for part in split_trace(trace, streams)]
        report = simulate_queueing(system, parts)
        rates.append(report.tokens_per_s)
        busiest.append(max(report.busy.values()))
    assert rates == sorted(rates)
    assert rates[-1] > 1.5 * rates[0]
    assert busiest[-1] > 0.9
    # A part that is busy 90% of the time at this rate cannot serve more than 1 / 90% of it.
    assert rates[-1] <= rates[0] / busiest[0] * (1 + 1e-9)
    assert report.bound_by_cause[:, QUEUE].min() > 0.3


def test_passes_that_meet_only_at_one_device_wait_as_lindley_says() -> None:
    """An instant head, no wire, constant work: the wait is the recursion W' = max(0, W + S - gap)."""
    shape = small_shape(num_moe_layers=1, num_experts=4, top_k=4)
    size = shape.expert_bytes(16)
    devices = (
        device("head", 4, size, gbytes_per_s=1e12, gflops=1e12),
        device("attic", 4, size, gbytes_per_s=1e-3, gflops=1e9, round_trip_s=0, gbits_per_s=1e12),
    )
    plan = plan_of(HolderTable.from_single(np.ones((1, 4), dtype=np.int64)), devices, shape)
    system = system_of(plan, devices, shape=shape)
    trace = np.tile(np.arange(4, dtype=np.uint16), (1, 1, 1))
    service_s = 4 * size / 1e6
    gaps = np.random.default_rng(2).exponential(service_s / 0.8, 400)
    starts = gaps.cumsum()
    report = simulate_queueing(system, [Stream([trace], start_s=float(start)) for start in starts])
    waits = [0.0]
    for gap in gaps[1:]:
        waits.append(max(0.0, waits[-1] + service_s - gap))
    assert report.num_steps == 400
    assert report.step_time_s.mean == pytest.approx(np.mean(waits) + service_s, rel=1e-6)
    assert report.step_time_s.max == pytest.approx(max(waits) + service_s, rel=1e-6)
    assert report.duration_s == pytest.approx(starts[-1] - starts[0] + waits[-1] + service_s, rel=1e-6)


def test_two_devices_behind_one_link_wait_for_each_other() -> None:
    """The closed form charges each as if it had the link alone."""
    plan = plan_of(HolderTable.from_single(np.tile([1, 2], 15).reshape(3, 10)), BEHIND_ONE_LINK)
    system = system_of(plan, BEHIND_ONE_LINK)
    assert system.shares_a_link
    trace = random_trace(0, 40)
    assert (
        simulate_queueing(system, [Stream([trace])]).duration_s > simulate_alone(system, [trace]).duration_s
    )


@given(sizes=st.lists(st.integers(0, 300), max_size=6), seed=st.integers(0, 50))
@examples(4)
def test_the_same_run_gives_the_same_report_to_the_last_bit(sizes: list[int], seed: int) -> None:
    system = system_of(random_plan(seed, replica_chance=0.3), workload=Workload(drafts=1))
    trace, luck = random_trace(seed, 900), Acceptance((0.6,), seed)
    half = len(trace) // 2
    whole = [Stream([trace[:half]], luck), Stream([trace[half:]], luck, start_s=0.001)]
    parts = [
        Stream([iter(np.split(stream.traces[0], np.cumsum(sizes)))], luck, stream.start_s) for stream in whole
    ]
    assert figures(simulate_queueing(system, whole)) == figures(simulate_queueing(system, parts))


def test_what_cannot_be_simulated_is_said() -> None:
    system = system_of(random_plan(0))
    with pytest.raises(InputError, match="streams: expected at least one"):
        simulate_queueing(system, [])
    with pytest.raises(InputError, match="expected at least 1 tokens"):
        simulate_queueing(system, [Stream([random_trace(0, 0)])])
    with pytest.raises(InputError, match=r"stream: .*found -1"):
        Stream([random_trace(0, 5)], start_s=-1)
    with pytest.raises(PlanError, match="worker 'cellar' is not in the plan"):
        simulate_queueing(system, [Stream([random_trace(0, 5)])], [WorkerLoss("cellar", 1.0)])
