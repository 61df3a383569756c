"""No placement beats the bounds, and better hardware never raises them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.bound import independent_bound_s, trace_bound_s
from placement.evaluate import evaluate
from placement.holders import HolderTable
from placement.least_time import candidates, least_time
from placement.plan import LOCAL_WORKER
from placement.problem import PlanningDevice, PlanningProblem
from placement.stats import RoutingStats
from placement.traces import CODING, GENERAL, SyntheticRouter
from placement.workload import Workload
from tests.placement.boxes import device
from tests.placement.shapes import small_shape

SHAPE = small_shape(num_moe_layers=4, num_experts=32, top_k=4)
SIZE = SHAPE.expert_bytes(16)
# One document of many tokens without stickiness: choices are independent.
ROUTER = SyntheticRouter(SHAPE, stickiness=0, document_tokens=4000)


def independent_problem(seed: int, drafts: int) -> PlanningProblem:
    """A head, sometimes a second device at home, one or two boxes; reading an expert takes 0.05 to 0.5 ms."""
    generator = np.random.default_rng(seed)
    sizes = generator.multinomial(
        SHAPE.num_routed_experts + int(generator.integers(0, 60)), [0.3, 0.2, 0.3, 0.2]
    )
    names = [LOCAL_WORKER, "home-ram", "attic", "den"]
    devices = [
        device(
            name,
            int(size),
            SIZE,
            home=name == "home-ram",
            gbytes_per_s=SIZE / float(generator.uniform(0.5e-4, 5e-4)) / 1e9,
            round_trip_s=float(generator.choice([1e-5, 3e-4, 3e-3])),
        )
        for name, size in zip(names, sizes.tolist(), strict=True)
    ]
    domain = (GENERAL, CODING)[seed % 2]
    trace = ROUTER.trace(domain, 4000, stream_seed=seed)
    stats = RoutingStats.from_trace(SHAPE, trace, domain.name)
    return PlanningProblem(SHAPE, tuple(devices), SIZE, stats, Workload(drafts=drafts))


def trace_of(problem: PlanningProblem) -> np.ndarray[tuple[int, ...], np.dtype[np.uint16]]:
    assert problem.stats is not None
    assert problem.stats.trace is not None
    return problem.stats.trace


@given(seed=st.integers(0, 10_000), drafts=st.integers(0, 2))
@settings(max_examples=12, deadline=None)
def test_no_placement_beats_the_bounds(seed: int, drafts: int) -> None:
    problem = independent_problem(seed, drafts)
    trace = trace_of(problem)
    assert problem.stats is not None
    by_trace = trace_bound_s(problem, trace)
    independent = independent_bound_s(problem, problem.stats.frequencies())
    assert by_trace > 0
    assert independent > 0
    for candidate in candidates(problem):
        mean_s = evaluate(problem, candidate.table, trace).mean_s
        assert mean_s >= by_trace
        # An expectation, met by a sample up to its noise.
        assert mean_s >= 0.99 * independent


@given(seed=st.integers(0, 10_000), masks_seed=st.integers(0, 10_000))
@settings(max_examples=8, deadline=None)
def test_replicas_do_not_beat_the_bounds_either(seed: int, masks_seed: int) -> None:
    problem = independent_problem(seed, drafts=0)
    masks = np.random.default_rng(masks_seed).random((4, 4, 32)) < 0.4
    masks[0] |= ~masks.any(axis=0)
    table = HolderTable.from_masks(masks)
    held = table.experts_per_worker(4)
    roomy = tuple(
        replace(d, worker=replace(d.worker, budget_bytes=int(n) * SIZE))
        for d, n in zip(problem.devices, held, strict=True)
    )
    problem = replace(problem, devices=roomy)
    trace = trace_of(problem)[:600]
    frequencies = RoutingStats.from_trace(SHAPE, trace, "part").frequencies()
    mean_s = evaluate(problem, table, trace).mean_s
    assert mean_s >= trace_bound_s(problem, trace)
    assert mean_s >= 0.97 * independent_bound_s(problem, frequencies)


def faster(problem: PlanningProblem, which: int, **change: float) -> PlanningProblem:
    devices = list(problem.devices)
    devices[which] = replace(devices[which], **change)  # type: ignore[arg-type]
    return replace(problem, devices=tuple(devices))


@pytest.mark.parametrize("which", [0, 2])
def test_more_bandwidth_or_memory_never_raises_the_bounds(which: int) -> None:
    problem = independent_problem(4, drafts=1)
    found: PlanningDevice = problem.devices[which]
    roomier = replace(found.worker, budget_bytes=found.worker.budget_bytes * 2)
    assert problem.stats is not None
    for better in (
        faster(problem, which, bandwidth_bytes_per_s=found.bandwidth_bytes_per_s * 2),
        faster(problem, which, worker=roomier),  # type: ignore[arg-type]
    ):
        assert trace_bound_s(better, trace_of(problem)) <= trace_bound_s(problem, trace_of(problem)) * (
            1 + 1e-9
        )
        frequencies = problem.stats.frequencies()
        assert independent_bound_s(better, frequencies) <= independent_bound_s(problem, frequencies) * (
            1 + 1e-6
        )


def test_one_box_with_room_for_all_is_exact() -> None:
    size = SHAPE.expert_bytes(16)
    alone = (device(LOCAL_WORKER, SHAPE.num_routed_experts, size),)
    stats = RoutingStats.from_trace(SHAPE, ROUTER.trace(GENERAL, 500), "synthetic")
    problem = PlanningProblem(SHAPE, alone, size, stats)
    mean_s = evaluate(problem, least_time(problem), trace_of(problem)).mean_s
    assert trace_bound_s(problem, trace_of(problem)) == pytest.approx(mean_s)
    assert independent_bound_s(problem, stats.frequencies()) == pytest.approx(mean_s)
