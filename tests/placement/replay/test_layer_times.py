"""Steps of several tokens: looking times up gives what computing them gives, to the last bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.cost.rates import expert_rates
from placement.cost.roofline import device_seconds, work_alone_seconds
from placement.given.cluster_spec import MachineSpec, Overheads
from placement.given.problem import PlanningProblem
from placement.replay import closed_form
from placement.replay.demand import count_demand
from placement.replay.layer_times import LayerTimes, first_largest
from placement.replay.simulate import simulate_alone
from placement.workload import Workload
from tests.examples import examples
from tests.placement.runs import DEVICES, SHAPE, SIZE, random_plan, random_trace, system_of


class Never:
    """In place of LayerTimes: all is computed."""

    @staticmethod
    def of(*_: object) -> None:
        return None


@given(seed=st.integers(0, 1000), num_tokens=st.integers(1, 5))
def test_every_device_takes_what_the_cost_model_says(seed: int, num_tokens: int) -> None:
    generator = np.random.default_rng(seed)
    overheads = Overheads(request_s=0.01, expert_s=0.02)
    devices = (*DEVICES[:2], replace(DEVICES[2], overheads=overheads))
    workload = Workload(drafts=num_tokens - 1)
    rates = expert_rates(PlanningProblem(SHAPE, devices, SIZE, workload=workload))
    times = LayerTimes.of(rates, num_tokens, 3)
    assert times is not None
    ids = np.argsort(generator.random((30, num_tokens, 10)), axis=2)[:, :, :3]
    demand = count_demand(generator.integers(0, 3, 10).astype(np.int16)[ids], ids, 3, 10)
    whole_s = device_seconds(rates, demand.rows, demand.distinct, demand.pairs)
    work_s = work_alone_seconds(rates, demand.distinct, demand.pairs)
    for device in range(3):
        counts = (demand.rows[:, device], demand.distinct[:, device], demand.pairs[:, device])
        found = times.look_up(device, *counts)
        assert found[0].tolist() == whole_s[:, device].tolist()
        assert found[1].tolist() == work_s[:, device].tolist()


@given(seed=st.integers(0, 1000), drafts=st.integers(1, 3), replicas=st.booleans())
@examples(20)
def test_reports_are_the_same(seed: int, drafts: int, replicas: bool) -> None:
    plan = random_plan(seed, replica_chance=0.4 if replicas else 0)
    system, trace = system_of(plan, workload=Workload(drafts=drafts)), random_trace(seed, 400)
    found = simulate_alone(system, [trace])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(closed_form, "LayerTimes", Never)
        computed = simulate_alone(system, [trace])
        patch.setattr(closed_form, "_CHOICES_AT_ONCE", 1)
        by_layer = simulate_alone(system, [trace])
    for other in (computed, by_layer):
        assert found.counts == other.counts
        assert found.duration_s == other.duration_s
        assert found.step_time_s == other.step_time_s
        assert dict(found.busy) == dict(other.busy)
        assert np.array_equal(found.bound_by_device, other.bound_by_device)
        assert np.array_equal(found.bound_by_cause, other.bound_by_cause)


def test_where_devices_depend_on_each_other_nothing_is_looked_up() -> None:
    machine = MachineSpec("box", ("den", "attic"), 2, 1e9)
    shared = (DEVICES[0], *(replace(device, machine=machine) for device in DEVICES[1:]))
    busy_head = (replace(DEVICES[0], overheads=Overheads(message_s=1e-3)), *DEVICES[1:])
    for devices in (shared, busy_head):
        assert LayerTimes.of(expert_rates(PlanningProblem(SHAPE, devices, SIZE)), 2, 3) is None


@given(seed=st.integers(0, 1000), num_parts=st.integers(1, 6))
def test_the_largest_part_is_the_first_of_equals(seed: int, num_parts: int) -> None:
    parts = np.random.default_rng(seed).integers(0, 3, (num_parts, 20)).astype(np.float64)
    largest, which = first_largest(iter(parts))
    assert largest.tolist() == parts.max(axis=0).tolist()
    assert which.tolist() == parts.argmax(axis=0).tolist()
