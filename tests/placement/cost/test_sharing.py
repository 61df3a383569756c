"""Software, shared cores and shared memory: figures worked out by hand, and a simulation in small steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from placement.cost.head import head_layer_seconds, head_seconds
from placement.cost.rates import expert_rates
from placement.cost.roofline import device_seconds, work_alone_seconds
from placement.cost.sharing import layer_seconds, shares, work_seconds
from placement.given.cluster_spec import MachineSpec, Overheads
from placement.given.problem import PlanningDevice, PlanningProblem
from placement.model_shape import STEP_3_5_FLASH
from placement.replay.evaluate import evaluate
from placement.replay.queueing.scenario import Stream
from placement.replay.queueing.simulation import simulate_queueing
from placement.replay.simulate import simulate_alone
from placement.workload import Workload
from tests.examples import examples
from tests.placement.boxes import device
from tests.placement.runs import DEVICES, SHAPE, random_plan, random_trace, system_of

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
    machines = [MachineSpec(d.tier.name, (), 1, 40e9) for d in apart.devices]
    apart = replace(
        apart,
        devices=tuple(replace(d, machine=m) for d, m in zip(apart.devices, machines, strict=True)),
    )
    rates = expert_rates(apart)
    experts = np.array([[0, 3, 2, 1], [0, 0, 4, 1]])
    assert work_seconds(rates, experts, experts) == pytest.approx(work_alone_seconds(rates, experts, experts))


@pytest.mark.parametrize(
    "seed", [*range(8), *(pytest.param(n, marks=pytest.mark.long) for n in range(8, 40))]
)
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
    assert (work >= work_alone_seconds(rates, distinct, pairs).sum(axis=1) / 2 * (1 - 1e-9)).all()
    assert (work >= (distinct * SIZE).sum(axis=1) / 60e9 * 0.97).all()  # two rounds, not a solution


def box_with_a_disk(ram: bool = True, gflops: float = 30) -> PlanningProblem:
    """A GPU, RAM at home unless there is none, and a disk beside it that states far too fast arithmetic."""
    disk = device("home-disk", 100, SIZE, tier="disk", home=True, gbytes_per_s=5, gflops=9e6)
    gpu = device("head", 100, SIZE, tier="vram", gbytes_per_s=900, gflops=9e4)
    cpu = device("home-ram", 100, SIZE, home=True, gbytes_per_s=60, gflops=gflops)
    return PlanningProblem(STEP_3_5_FLASH, (gpu, cpu, disk) if ram else (gpu, disk), SIZE)


def test_a_disk_and_the_ram_beside_it_compute_on_one_cpu() -> None:
    problem = box_with_a_disk()
    rates = expert_rates(problem)
    rows, distinct, pairs = np.array([0, 9, 9]), np.array([0, 4, 1]), np.array([0, 30, 20])
    seconds = layer_seconds(rates, rows, distinct, pairs)
    one_s = 2 * STEP_3_5_FLASH.expert_parameters / 30e9
    assert seconds.max() == pytest.approx(50 * one_s)
    few = np.array([0, 4, 1])
    assert layer_seconds(rates, np.minimum(few, 1), few, few).max() == pytest.approx(
        max(SIZE / 5e9, 4 * SIZE / 60e9, 5 * one_s)
    )
    # With nothing in RAM the disk has the CPU, not its own rate, to itself.
    seconds = layer_seconds(rates, np.array([0, 0, 9]), np.array([0, 0, 1]), np.array([0, 0, 20]))
    assert seconds[2] == pytest.approx(20 * one_s)


def test_a_disk_without_ram_beside_it_keeps_its_own_rate() -> None:
    rates = expert_rates(box_with_a_disk(ram=False))
    assert not shares(rates)
    assert rates.compute_s[1] == pytest.approx(2 * STEP_3_5_FLASH.expert_parameters / 9e15)


@given(seed=st.integers(0, 10_000))
@examples(30)
def test_a_disks_arithmetic_slows_its_box_and_never_helps(seed: int) -> None:
    draws = np.random.default_rng(seed)
    problem = box_with_a_disk(gflops=float(draws.choice([30, 1000])))
    rates = expert_rates(problem)
    pairs = draws.integers(0, 40, (50, 3))
    distinct = np.minimum(pairs, draws.integers(1, 9, (50, 3)))
    rows = np.minimum(pairs, 9)
    layer_s = layer_seconds(rates, rows, distinct, pairs).max(axis=1)
    assert (layer_s >= device_seconds(rates, rows, distinct, pairs).max(axis=1) * (1 - 1e-12)).all()
    # In RAM the same experts take the same CPU as long, and are read sooner.
    moved = [np.stack([c[:, 0], c[:, 1] + c[:, 2], 0 * c[:, 2]], axis=1) for c in (rows, distinct, pairs)]
    in_ram_s = layer_seconds(rates, *moved).max(axis=1)
    computing_s = (pairs[:, 1] + pairs[:, 2]) * rates.compute_s[1]
    assert (layer_s >= computing_s * (1 - 1e-12)).all()
    assert (in_ram_s >= computing_s * (1 - 1e-12)).all()


@pytest.mark.parametrize("drafts", [0, 2])
@pytest.mark.parametrize("gpu", [False, True])
def test_a_box_with_a_disk_takes_the_same_time_event_by_event(drafts: int, gpu: bool) -> None:
    size = SHAPE.expert_bytes(16)
    devices = [
        device("home-ram" if gpu else "head", 30, size, home=True, gbytes_per_s=0.01, gflops=1e-2),
        device("home-disk", 30, size, tier="disk", home=True, gbytes_per_s=0.005, gflops=1e6),
        device("den", 30, size, gbytes_per_s=0.005, gbits_per_s=0.013),
    ]
    if gpu:
        devices.insert(0, device("head", 30, size, tier="vram", gbytes_per_s=0.03))
    system = system_of(random_plan(4, devices), devices, Workload(drafts=drafts))
    trace = random_trace(5, 60)
    alone, queued = simulate_alone(system, [trace]), simulate_queueing(system, [Stream([trace])])
    assert queued.duration_s == pytest.approx(alone.duration_s)
    moe_s = evaluate(system.problem, system.plan.holder_table, trace).mean_s
    assert alone.step_time_s.mean == pytest.approx(moe_s + head_seconds(system.problem).total_s)
    apart = [replace(d, tier=replace(d.tier, kind="ram")) for d in devices]
    apart_s = simulate_alone(system_of(system.plan, apart, Workload(drafts=drafts)), [trace]).duration_s
    assert alone.duration_s > apart_s


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
            machine=machine if d.tier.node != "attic" else None,
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
