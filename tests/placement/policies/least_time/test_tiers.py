"""Memory of one box: what is faster is full before anything lies in what is slower, in every plan."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from placement.given.problem import PlanningDevice, PlanningProblem
from placement.given.stats import RoutingStats
from placement.given.traces import CODING, SyntheticRouter
from placement.holders import HolderTable
from placement.policies.least_time.copies import add_copies
from placement.policies.least_time.layer_search import sample_layers
from placement.policies.least_time.objective import objective_s
from placement.policies.least_time.policy import least_time
from placement.policies.least_time.tiers import faster_beside, fill_fast_memory, useless_on_disk
from placement.policies.registry import BASELINES
from placement.workload import Workload
from tests.examples import examples
from tests.placement.boxes import device
from tests.placement.shapes import small_shape

SHAPE = small_shape(num_moe_layers=2, num_experts=16, top_k=3)
SIZE = SHAPE.expert_bytes(16)
READ_GBYTES_PER_S = SIZE / 1e-4 / 1e9
TRACE = SyntheticRouter(SHAPE).trace(CODING, 400)
STATS = RoutingStats.from_trace(SHAPE, TRACE, "synthetic")
TIERS = {"vram": (8.0, 4e-2), "ram": (1.0, 1e-3), "disk": (0.1, 1e9)}


def random_problem(seed: int) -> PlanningProblem:
    """One to three boxes, each with some of VRAM, RAM and a disk, and room for all experts together."""
    draws = np.random.default_rng(seed)
    devices: list[PlanningDevice] = []
    for box in range(int(draws.integers(1, 4))):
        kinds = [kind for kind in TIERS if draws.random() < 0.7] or ["ram"]
        for kind in kinds:
            speed, gflops = TIERS[kind]
            made = device(
                f"box{box}-{kind}" if devices else "head",
                int(draws.integers(0, 24)),
                SIZE,
                tier=kind,
                home=box == 0,
                gbytes_per_s=READ_GBYTES_PER_S * speed * float(draws.uniform(0.5, 2)),
                gflops=gflops,
                round_trip_s=float(draws.choice([1e-5, 1e-3])),
            )
            devices.append(replace(made, tier=replace(made.tier, node=f"box{box}")))
    missing = SHAPE.num_routed_experts - sum(d.capacity(SIZE) for d in devices)
    if missing > 0:
        last = devices[-1]
        room = last.tier.budget_bytes + missing * SIZE
        devices[-1] = replace(last, tier=replace(last.tier, budget_bytes=room))
    workload = Workload(
        drafts=int(draws.integers(0, 2)),
        prompt_tokens_per_token=float(draws.choice([0, 8])),
        prefill_tokens=64,
    )
    return PlanningProblem(SHAPE, tuple(devices), SIZE, STATS, workload)


def misplaced(problem: PlanningProblem, table: HolderTable) -> int:
    """Experts in slower memory only, though a faster one of the box has room; and useless copies on disks."""
    masks = np.stack([table.mask(d) for d in range(len(problem.devices))])
    has_room = masks.sum(axis=(1, 2)) < problem.capacities()
    found = int((masks & useless_on_disk(problem, faster_beside(problem), masks)).sum())
    for index, faster in enumerate(faster_beside(problem)):
        if (faster & has_room).any():
            found += int((masks[index] & ~masks[faster].any(axis=0)).sum())
    return found


# In these a copy comes to faster memory in a later round than to the disk beside it.
@example(seed=26)
@example(seed=131)
@given(seed=st.integers(0, 100_000))
@examples(1)
def test_no_plan_leaves_an_expert_in_slower_memory_than_its_box_has_room_for(seed: int) -> None:
    problem = random_problem(seed)
    table = least_time(problem)
    assert misplaced(problem, table) == 0
    assert (table.table[:, :, 0] >= 0).all()
    assert (table.experts_per_worker(len(problem.devices)) <= problem.capacities()).all()


@given(seed=st.integers(0, 100_000), copy_chance=st.sampled_from([0.0, 0.3]))
def test_settling_keeps_every_expert_and_every_budget(seed: int, copy_chance: float) -> None:
    problem = random_problem(seed)
    draws = np.random.default_rng(seed)
    slots = np.repeat(np.arange(len(problem.devices)), problem.capacities())
    holders = draws.permutation(slots)[: SHAPE.num_routed_experts].reshape(2, 16)
    masks = np.stack([holders == d for d in range(len(problem.devices))])
    for index, room in enumerate(problem.capacities() - masks.sum(axis=(1, 2))):
        spare = np.flatnonzero(~masks[index].ravel() & (draws.random(32) < copy_chance))[:room]
        masks[index].ravel()[spare] = True
    table = fill_fast_memory(problem, HolderTable.from_masks(masks))
    assert misplaced(problem, table) == 0
    assert (table.table[:, :, 0] >= 0).all()
    assert (table.experts_per_worker(len(problem.devices)) <= problem.capacities()).all()
    assert fill_fast_memory(problem, table) == table


@pytest.mark.parametrize("ratio", [0.0, 8.0])
def test_a_disk_gets_no_copies_of_what_faster_memory_of_its_box_holds(ratio: float) -> None:
    disk = device("disk", 60, SIZE, tier="disk", home=True, gbytes_per_s=READ_GBYTES_PER_S / 2)
    head = device("head", 32, SIZE, gbytes_per_s=READ_GBYTES_PER_S)
    workload = Workload(prompt_tokens_per_token=ratio)
    problem = PlanningProblem(SHAPE, (head, disk), SIZE, STATS, workload)
    single = HolderTable.from_single(np.zeros((2, 16), dtype=np.int16))
    layers = sample_layers(TRACE, STATS.frequencies(), 1, 4000)
    assert add_copies(problem, single, layers) == single
    assert least_time(problem) == single
    # Where they are of use: in another box's RAM.
    far = replace(disk, tier=replace(disk.tier, node="attic", kind="ram"))
    assert add_copies(replace(problem, devices=(head, far)), single, layers).has_replicas


@pytest.mark.parametrize("policy", ["one-box", "hottest-first", "whole-layers"])
def test_baselines_that_go_by_speed_do_the_same(policy: str) -> None:
    for seed in range(30):
        problem = random_problem(seed)
        if policy == "one-box":
            home = tuple(d for d in problem.devices if d.is_home)
            disk = device("spare", 32, SIZE, tier="disk", home=True, gbytes_per_s=READ_GBYTES_PER_S / 99)
            spare = replace(disk, tier=replace(disk.tier, node="box0"))
            problem = replace(problem, devices=(*home, spare))
        assert misplaced(problem, BASELINES[policy](problem)) == 0


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(n, marks=pytest.mark.long) for n in range(2, 12))])
def test_weighing_prompts_never_makes_a_plan_worse_by_that_weight(seed: int) -> None:
    problem = random_problem(seed)
    plain = replace(problem, workload=replace(problem.workload, prompt_tokens_per_token=0.0))
    weighed = replace(problem, workload=replace(problem.workload, prompt_tokens_per_token=8.0))
    ours, other = (objective_s(weighed, least_time(given), TRACE) for given in (weighed, plain))
    assert ours <= other * 1.02
