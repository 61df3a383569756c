"""The closed form: against the planner's own replay, by hand, and what must hold for any run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.cost.head import head_seconds
from placement.errors import InputError, PlanDoesNotFit, PlanError
from placement.replay import tally as tally_module
from placement.replay.evaluate import evaluate
from placement.replay.queueing.scenario import Stream
from placement.replay.queueing.simulation import simulate_queueing
from placement.replay.simulate import simulate_alone
from placement.replay.steps import Acceptance
from placement.replay.tally import AT_HOME, CAUSES, MEMORY, ROUND_TRIP, WIRE, SimulationReport
from placement.workload import Workload
from tests.examples import examples
from tests.placement.boxes import device
from tests.placement.runs import DEVICES, SHAPE, SIZE, plan_of, random_plan, random_trace, system_of
from tests.placement.shapes import small_shape


def figures(report: SimulationReport) -> tuple[object, ...]:
    """All of a report that can be compared with ==."""
    arrays = (report.bound_by_device.tolist(), report.bound_by_cause.tolist())
    values = (report.duration_s, report.num_steps, report.step_time_s, report.token_time_s, report.counts)
    return (*values, report.num_tokens, dict(report.busy), dict(report.bytes_by_link), *arrays)


@given(seed=st.integers(0, 1000), drafts=st.integers(0, 3), replicas=st.booleans())
@examples(30)
def test_a_run_takes_what_the_planner_expects(seed: int, drafts: int, replicas: bool) -> None:
    plan = random_plan(seed, replica_chance=0.4 if replicas else 0)
    workload = Workload(drafts=drafts, accepted_drafts=0.5 * drafts, context=100)
    system, trace = system_of(plan, workload=workload), random_trace(seed, 41)
    report = simulate_alone(system, [trace])
    planned = evaluate(system.problem, plan.holder_table, trace)
    mean_s = planned.mean_s + head_seconds(system.problem).total_s
    assert report.step_time_s.mean == pytest.approx(mean_s, rel=1e-12)
    assert report.duration_s == pytest.approx(mean_s * report.num_steps, rel=1e-12)
    assert report.tokens_per_s == pytest.approx(workload.tokens_out_per_step / mean_s)
    assert report.remote_layers_per_token * report.num_tokens == pytest.approx(planned.remote_layers.sum())
    assert report.bound_by_device.mean(axis=0) == pytest.approx(planned.bound_share)


@given(seed=st.integers(0, 1000), sequences=st.integers(1, 3), replicas=st.booleans())
@examples(30)
def test_nothing_is_busy_longer_than_the_run_and_bytes_add_up(
    seed: int, sequences: int, replicas: bool
) -> None:
    plan = random_plan(seed, replica_chance=0.4 if replicas else 0)
    system = system_of(plan, workload=Workload(num_sequences=sequences))
    report = simulate_alone(system, [random_trace(seed, 60)])
    assert set(report.busy) == {*system.names, *report.bytes_by_link}
    assert all(0 <= share <= 1 + 1e-12 for share in report.busy.values())
    assert report.bytes_moved == sum(report.bytes_by_link.values())
    counts = report.counts
    assert sum(counts.activations) == report.num_steps * sequences * 3 * 3
    assert all(read <= pairs for read, pairs in zip(counts.experts_read, counts.activations, strict=True))
    # Routing (8 bytes a choice, 4 a row) and one flag a row travel with the tensors.
    rows = counts.sent_bytes // (SHAPE.hidden_size * 2)
    assert report.bytes_moved == counts.sent_bytes + counts.received_bytes + rows * (8 * 3 + 4 + 1)
    assert report.bound_by_device.sum(axis=1) == pytest.approx([1, 1, 1])
    assert report.bound_by_cause.sum(axis=1) == pytest.approx([1, 1, 1])


@given(sizes=st.lists(st.integers(0, 900), max_size=10), seed=st.integers(0, 50))
@examples(15)
def test_any_chunking_gives_the_same_report_to_the_last_bit(sizes: list[int], seed: int) -> None:
    system = system_of(random_plan(seed), workload=Workload(drafts=2))
    trace, luck = random_trace(seed, 9000), Acceptance((0.8, 0.6), seed)
    parts = iter(np.split(trace, np.cumsum(sizes)))
    assert figures(simulate_alone(system, [trace], luck)) == figures(simulate_alone(system, [parts], luck))


def test_drafts_that_hold_save_passes() -> None:
    trace = random_trace(0, 2000)
    system = system_of(random_plan(0), workload=Workload(drafts=1))
    never, half, always = (simulate_alone(system, [trace], Acceptance((p,))) for p in (0.0, 0.5, 1.0))
    assert (never.num_steps, always.num_steps) == (1999, 1000)
    assert never.num_tokens == 1999
    assert always.num_tokens == 2000
    assert always.token_time_s.mean == pytest.approx(always.step_time_s.mean / 2)
    assert always.tokens_per_s > half.tokens_per_s > never.tokens_per_s


def test_a_slow_memory_or_a_long_way_is_named_as_what_bounds_a_layer() -> None:
    far = replace(DEVICES[1], round_trip_s=1.0)
    plan = random_plan(1)
    plan = plan_of(type(plan.holder_table).from_single(np.ones((3, 10), dtype=np.int64)))
    devices = (DEVICES[0], far, DEVICES[2])
    report = simulate_alone(system_of(plan, devices), [random_trace(0, 20)])
    assert report.bound_by_cause[:, ROUND_TRIP].tolist() == [1, 1, 1]
    assert report.bound_by_device[:, 1].tolist() == [1, 1, 1]
    slow = replace(DEVICES[1], bandwidth_bytes_per_s=100.0)
    report = simulate_alone(system_of(plan, (DEVICES[0], slow, DEVICES[2])), [random_trace(0, 20)])
    assert report.bound_by_cause[:, MEMORY].tolist() == [1, 1, 1]
    assert len(CAUSES) == report.bound_by_cause.shape[1]


@pytest.mark.parametrize("tokens", [1, 3])
def test_where_no_box_is_remote_no_layer_waits_for_a_round_trip_or_the_wire(tokens: int) -> None:
    beside = replace(DEVICES[1], is_home=True, round_trip_s=1.0, link_bytes_per_s=1e3)
    devices = (DEVICES[0], beside)
    system = system_of(random_plan(1, devices), devices, Workload(num_sequences=tokens))
    trace = random_trace(0, 21)
    for report in (simulate_alone(system, [trace]), simulate_queueing(system, [Stream([trace])])):
        assert report.remote_layers_per_token == 0
        assert not report.bound_by_cause[:, [ROUND_TRIP, WIRE]].any()
        assert report.bound_by_cause[:, AT_HOME].mean() > 0.5
    away = (DEVICES[0], replace(beside, is_home=False))
    report = simulate_alone(system_of(system.plan, away, Workload(num_sequences=tokens)), [trace])
    assert not report.bound_by_cause[:, AT_HOME].any()


def test_a_long_pass_goes_in_several_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally_module, "MAX_MESSAGE_ROWS", 4)
    plan = plan_of(type(random_plan(0).holder_table).from_single(np.ones((3, 10), dtype=np.int64)))
    report = simulate_alone(system_of(plan, workload=Workload(num_sequences=10)), [random_trace(0, 10)])
    assert report.counts.messages == 3 * 3


def test_a_head_without_experts_still_computes_attention() -> None:
    plan = random_plan(3, DEVICES[1:])
    system = system_of(plan)
    assert system.names == ("den", "attic", "head")
    report = simulate_alone(system, [random_trace(0, 30)])
    assert len(report.counts.activations) == 2
    assert report.counts.remote_layers == 90
    assert report.busy["head"] > 0


def test_plans_that_do_not_go_with_the_cluster_are_refused() -> None:
    plan = random_plan(0)
    with pytest.raises(PlanError, match=r"device 'attic' is not in the cluster, whose devices are head, den"):
        system_of(plan, DEVICES[:2])
    moved = replace(DEVICES[2], tier=replace(DEVICES[2].tier, node="cellar"))
    with pytest.raises(PlanError, match="'attic' is on node 'attic', in the cluster on 'cellar'"):
        system_of(plan, (*DEVICES[:2], moved))
    with pytest.raises(PlanDoesNotFit, match=r"'attic' holds [0-9.]+ k?B more than the cluster gives it"):
        system_of(plan, (*DEVICES[:2], device("attic", 1, SIZE)))
    with pytest.raises(PlanError, match="plan for another model"):
        system_of(plan, shape=small_shape(num_moe_layers=3, num_experts=12, top_k=3))
    with pytest.raises(InputError, match="the head's node has no device"):
        system_of(random_plan(0, DEVICES[1:]), DEVICES[1:])
