"""Looking times up gives what computing them gives, to the last bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.cost.rates import expert_rates
from placement.cost.roofline import device_seconds
from placement.given.cluster_spec import MachineSpec, Overheads
from placement.given.problem import PlanningProblem
from placement.replay import closed_form
from placement.replay.evaluate import evaluate
from placement.replay.simulate import simulate_alone
from placement.replay.single_token import SingleTokenTimes
from tests.examples import examples
from tests.placement.runs import DEVICES, SHAPE, SIZE, random_plan, random_trace, system_of


class Never:
    """In place of SingleTokenTimes: all is computed."""

    @staticmethod
    def of(*_: object) -> None:
        return None


@given(
    seed=st.integers(0, 1000),
    num_devices=st.integers(1, 3),
    equal=st.booleans(),
    top_k=st.sampled_from([3, 8, 600]),
)
def test_the_slowest_device_and_its_time_are_those_computed(
    seed: int, num_devices: int, equal: bool, top_k: int
) -> None:
    devices = (DEVICES[0], *(DEVICES[1] for _ in range(2))) if equal else DEVICES
    rates = expert_rates(PlanningProblem(SHAPE, devices[:num_devices], SIZE))
    # One number more for no device.
    chosen = np.random.default_rng(seed).integers(0, num_devices + 1, (top_k, 50)).astype(np.uint8)
    times = SingleTokenTimes.of(rates, top_k)
    assert times is not None
    rank, cells = times.look_up(chosen)
    pairs = (chosen == np.arange(num_devices)[:, None, None]).sum(axis=1)
    computed = device_seconds(rates, np.minimum(pairs, 1).T, pairs.T, pairs.T)
    assert times.seconds[rank].tolist() == computed.max(axis=1).tolist()
    assert times.device[rank].tolist() == computed.argmax(axis=1).tolist()
    assert times.experts[rank].tolist() == pairs[times.device[rank], np.arange(50)].tolist()
    for device in range(num_devices):
        assert cells[device].tolist() == np.bincount(pairs[device], minlength=top_k + 1).tolist()


@given(seed=st.integers(0, 1000), replicas=st.booleans(), headless=st.booleans())
@examples(30)
def test_reports_and_evaluations_are_the_same(seed: int, replicas: bool, headless: bool) -> None:
    plan = random_plan(seed, DEVICES[headless:], replica_chance=0.4 if replicas else 0)
    system, trace = system_of(plan), random_trace(seed, 60)
    found, evaluation = simulate_alone(system, [trace]), evaluate(system.problem, plan.holder_table, trace)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(closed_form, "SingleTokenTimes", Never)
        computed = simulate_alone(system, [trace])
        computed_evaluation = evaluate(system.problem, plan.holder_table, trace)
    assert found.counts == computed.counts
    assert found.step_time_s == computed.step_time_s
    assert dict(found.busy) == pytest.approx(dict(computed.busy))
    assert np.array_equal(found.bound_by_device, computed.bound_by_device)
    assert np.array_equal(found.bound_by_cause, computed.bound_by_cause)
    assert found.bytes_moved == computed.bytes_moved
    assert found.remote_layers_per_token == computed.remote_layers_per_token
    assert evaluation.moe_seconds.tolist() == computed_evaluation.moe_seconds.tolist()
    assert evaluation.remote_layers.tolist() == computed_evaluation.remote_layers.tolist()
    assert evaluation.bound_share.tolist() == computed_evaluation.bound_share.tolist()


def test_where_devices_depend_on_each_other_nothing_is_looked_up() -> None:
    machine = MachineSpec("box", ("den", "attic"), 2, 1e9)
    shared = (DEVICES[0], *(replace(device, machine=machine) for device in DEVICES[1:]))
    busy_head = (replace(DEVICES[0], overheads=Overheads(message_s=1e-3)), *DEVICES[1:])
    for devices in (shared, busy_head):
        assert SingleTokenTimes.of(expert_rates(PlanningProblem(SHAPE, devices, SIZE)), 3) is None
