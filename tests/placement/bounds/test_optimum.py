"""What no cost model may break: better boxes never make the best possible plan slower."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from placement.given.problem import PlanningDevice, PlanningProblem
from placement.holders import HolderTable
from placement.replay.evaluate import evaluate
from placement.workload import Workload
from tests.examples import examples
from tests.placement.boxes import device
from tests.placement.shapes import small_shape

SHAPE = small_shape(num_moe_layers=1, num_experts=5, top_k=2)
SIZE = SHAPE.expert_bytes(16)


def optimum_s(devices: tuple[PlanningDevice, ...], trace: np.ndarray, tokens: int) -> float:
    """By trying every placement without copies."""
    problem = PlanningProblem(SHAPE, devices, SIZE, workload=Workload(num_sequences=tokens))
    room = problem.capacities()
    placements = (
        np.array([holders])
        for holders in itertools.product(range(len(devices)), repeat=SHAPE.num_experts)
        if (np.bincount(holders, minlength=len(devices)) <= room).all()
    )
    return min(evaluate(problem, HolderTable.from_single(p), trace).mean_s for p in placements)


@examples(25)
@given(
    seed=st.integers(0, 10**6),
    room=st.tuples(st.integers(1, 5), st.integers(4, 5)),
    tokens=st.integers(1, 2),
    better=st.sampled_from(["memory", "bandwidth", "link", "round trip", "arithmetic"]),
    which=st.integers(0, 1),
)
def test_better_boxes_never_make_the_optimum_worse(
    seed: int, room: tuple[int, int], tokens: int, better: str, which: int
) -> None:
    generator = np.random.default_rng(seed)
    trace = np.argsort(generator.random((12, 1, 5)), axis=2)[:, :, :2].astype(np.uint16)
    speeds = generator.uniform(0.001, 0.01, 2)
    devices = (
        device("head", room[0], SIZE, gbytes_per_s=speeds[0], gflops=0.05),
        device("box", room[1], SIZE, gbytes_per_s=speeds[1], gflops=0.05, round_trip_s=1e-4),
    )
    one = devices[which]
    improved = {
        "memory": replace(one, tier=replace(one.tier, budget_bytes=one.tier.budget_bytes + int(SIZE * 1.5))),
        "bandwidth": replace(one, bandwidth_bytes_per_s=one.bandwidth_bytes_per_s * 1.7),
        "link": replace(one, link_bytes_per_s=one.link_bytes_per_s * 3),
        "round trip": replace(one, round_trip_s=one.round_trip_s / 2),
        "arithmetic": replace(one, ffn_flops_per_s=one.ffn_flops_per_s * 2),
    }[better]
    after = (improved, devices[1]) if which == 0 else (devices[0], improved)
    assert optimum_s(after, trace, tokens) <= optimum_s(devices, trace, tokens) * (1 + 1e-12)
