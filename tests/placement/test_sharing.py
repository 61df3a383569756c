"""Software, shared cores and shared memory: figures worked out by hand, and a simulation in small steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from placement.cluster_spec import MachineSpec, Overheads
from placement.cost import device_seconds, expert_rates, expert_seconds, head_layer_seconds, head_seconds
from placement.model_shape import STEP_3_5_FLASH
from placement.problem import PlanningDevice, PlanningProblem
from placement.sharing import layer_seconds, shares, work_seconds
from placement.simulate import simulate_alone
from placement.simulation.queueing import simulate_queueing
from placement.simulation.scenario import Stream
from placement.workload import Workload
from tests.placement.boxes import device
from tests.placement.runs import DEVICES, random_plan, random_trace, system_of

SIZE = STEP_3_5_FLASH.expert_bytes(4.5)
MACHINE = MachineSpec("desk", ("home",), cores=2, bandwidth_bytes_per_s=60e9)


def workers(count: int, machine: MachineSpec | None = MACHINE, gflops: float = 1e6) -> PlanningProblem:
    """A head without experts and `count` workers of 40 GB/s, all on one machine."""
    names = ["head", *(f"worker-{i}" for i in range(count))]
    told = Overheads(message_s=2e-5, message_row_s=3e-6)
    devices: list[PlanningDevice] = [
        replace(
            device(name, 100, SIZE, home=True, gbytes_per_s=40, gflops=gflops),
            machine=machine,
            overheads=told if name == "head" else Overheads(request_s=1e-4),
        )
        for name in names
    ]
    shape = replace(STEP_3_5_FLASH, shared_intermediate_size=0)
    return PlanningProblem(shape, tuple(devices), SIZE)


def test_every_request_costs_software_at_both_ends() -> None:
    rates = expert_rates(workers(3, machine=None))
    rows, experts = np.array([0, 5, 2, 0]), np.array([0, 2, 1, 0])
    seconds = layer_seconds(rates, rows, experts, experts)
    assert seconds.max() == pytest.approx(2 * 2e-5 + 7 * 3e-6 + 1e-4 + 2 * SIZE / 40e9)
    assert not shares(rates)


def test_two_readers_share_the_memory_and_the_last_goes_on_alone() -> None:
    """Two at 40 GB/s on 60 GB/s: a third slower while both read."""
    problem = workers(2)
    problem = replace(problem, devices=tuple(replace(d, overheads=Overheads()) for d in problem.devices))
    experts = np.array([0, 4, 1])
    one = SIZE / 40e9
    together = 4 / 3 * one  # until the shorter is done
    seconds = work_seconds(expert_rates(problem), experts, experts)
    assert seconds.tolist() == pytest.approx([0, together + 3 * one, together])


def test_four_that_compute_take_turns_on_two_cores() -> None:
    problem = workers(4, gflops=1)
    problem = replace(problem, devices=tuple(replace(d, overheads=Overheads()) for d in problem.devices))
    experts = np.array([0, 1, 1, 1, 3])
    one = float(expert_rates(problem).compute_s[1])
    seconds = work_seconds(expert_rates(problem), experts, experts)
    assert seconds.tolist() == pytest.approx([0, 2 * one, 2 * one, 2 * one, 4 * one])


def test_devices_with_a_machine_each_do_not_slow_each_other() -> None:
    apart = workers(3)
    machines = [MachineSpec(d.worker.name, (), 1, 40e9) for d in apart.devices]
    apart = replace(
        apart,
        devices=tuple(replace(d, machine=m) for d, m in zip(apart.devices, machines, strict=True)),
    )
    rates = expert_rates(apart)
    experts = np.array([[0, 3, 2, 1], [0, 0, 4, 1]])
    assert work_seconds(rates, experts, experts) == pytest.approx(expert_seconds(rates, experts, experts))


@pytest.mark.parametrize("seed", range(20))
def test_sharing_is_that_of_a_simulation_in_small_steps(seed: int) -> None:
    generator = np.random.default_rng(seed)
    problem = workers(4, gflops=float(generator.choice([50.0, 500.0, 1e6])))
    rates = expert_rates(problem)
    experts = generator.integers(0, 5, 5) * (generator.random(5) < 0.8)
    experts[0] = 0
    pairs = experts * generator.integers(1, 4, 5)
    expected = step_by_step(problem, experts, pairs)
    assert work_seconds(rates, experts, pairs) == pytest.approx(expected, rel=0.01, abs=1e-5)


def step_by_step(
    problem: PlanningProblem, experts: NDArray[np.int64], pairs: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Every device does a small piece of its job at the rate of the moment, as docs/cost-model.md has it."""
    rates = expert_rates(problem)
    software = np.where(pairs > 0, 1e-4, 0.0)
    reading, computing = experts * rates.read_s, pairs * rates.compute_s
    alone = software + np.maximum(reading, computing)
    left, done, now = np.where(alone > 0, 1.0, 0.0), np.zeros(5), 0.0
    step_s = alone.max(initial=1e-4) / 5000
    while (left > 0).any():
        at_work = left > 0
        cores = max(1.0, at_work.sum() / 2)
        wanted = np.divide(reading, alone, out=np.zeros(5), where=alone > 0) * 40 / 60
        memory = max(cores, wanted[at_work].sum())
        whole = software * cores + np.maximum(reading * memory, computing * cores)
        memory *= max(1.0, (reading[at_work] * 40 / 60 / whole[at_work]).sum())
        whole = software * cores + np.maximum(reading * memory, computing * cores)
        now += step_s
        left[at_work] -= step_s / whole[at_work]
        done[at_work & (left <= 0)] = now
    return done


def test_sharing_never_makes_anything_faster_and_never_less_than_the_work() -> None:
    generator = np.random.default_rng(3)
    problem = workers(4, gflops=200)
    problem = replace(problem, devices=tuple(replace(d, overheads=Overheads()) for d in problem.devices))
    rates = expert_rates(problem)
    pairs = generator.integers(0, 9, (500, 5))
    distinct = np.minimum(pairs, generator.integers(1, 5, (500, 5)))
    rows = (pairs > 0).astype(int)
    alone = device_seconds(rates, rows, distinct, pairs)
    shared = layer_seconds(rates, rows, distinct, pairs)
    assert (shared >= alone * (1 - 1e-9)).all()
    work = work_seconds(rates, distinct, pairs).max(axis=1)
    assert (work >= expert_seconds(rates, distinct, pairs).sum(axis=1) / 2 * (1 - 1e-9)).all()
    assert (work >= (distinct * SIZE).sum(axis=1) / 60e9 * 0.97).all()  # two rounds, not a solution


def test_the_heads_software_is_counted_by_layer_row_pass_and_draft() -> None:
    shape = STEP_3_5_FLASH
    plain = PlanningProblem(shape, (device("head", 1, SIZE),), SIZE, workload=Workload(drafts=2))
    told = Overheads(layer_s=1e-3, moe_layer_s=1e-4, batch_s=2e-3, row_s=1e-5, pass_s=0.5, draft_s=0.25)
    slow = replace(plain, devices=(replace(plain.devices[0], overheads=told),))
    extra = head_seconds(slow).total_s - head_seconds(plain).total_s
    drafts = 2 * 0.25 + (1 + 2) * 1e-5  # layer 1 takes in one slot, layer 2 that and one that hung on a draft
    assert extra == pytest.approx(45 * (1e-3 + 2e-3 + 3e-5) + 42 * 1e-4 + 0.5 + drafts)
    layers = head_layer_seconds(slow) - head_layer_seconds(plain)
    assert layers == pytest.approx(np.where(np.arange(45) < 3, 3.03e-3, 3.13e-3))
    one_row = [replace(p, workload=Workload()) for p in (slow, plain)]
    extra = head_seconds(one_row[0]).total_s - head_seconds(one_row[1]).total_s
    assert extra == pytest.approx(45 * (1e-3 + 1e-5) + 42 * 1e-4 + 0.5)


@pytest.mark.parametrize("drafts", [0, 2])
def test_one_stream_takes_the_same_time_event_by_event(drafts: int) -> None:
    machine = MachineSpec("desk", ("home", "den"), cores=1.5, bandwidth_bytes_per_s=12e6)
    devices = tuple(
        replace(
            d,
            machine=machine if d.worker.node != "attic" else None,
            overheads=Overheads(1e-4, 2e-4, layer_s=1e-3, moe_layer_s=1e-4, batch_s=1e-3, pass_s=1e-2),
        )
        for d in DEVICES
    )
    system = system_of(random_plan(4, devices), devices, Workload(drafts=drafts))
    trace = random_trace(5, 60)
    alone, queued = simulate_alone(system, [trace]), simulate_queueing(system, [Stream([trace])])
    assert queued.duration_s == pytest.approx(alone.duration_s)
    assert queued.counts == alone.counts
    plain = system_of(random_plan(4), workload=Workload(drafts=drafts))
    assert alone.duration_s > simulate_alone(plain, [trace]).duration_s
    busy = {name: share for name, share in alone.busy.items() if "link" not in name}
    assert all(0 < share <= 1 for share in busy.values())
