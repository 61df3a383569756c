"""No placement beats the bounds, and better hardware never raises them."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.bounds.bound import independent_bound_s, lower_bound_s, trace_bound_s
from placement.bounds.memory_prices import priced_bound_s
from placement.cost.rates import expert_rates
from placement.cost.sharing import layer_seconds
from placement.given.cluster_spec import Overheads
from placement.given.problem import PlanningDevice, PlanningProblem
from placement.given.stats import RoutingStats
from placement.given.traces import CODING, GENERAL, SyntheticRouter
from placement.holders import HolderTable
from placement.plan import LOCAL_WORKER
from placement.policies.least_time.policy import candidates, least_time
from placement.replay.evaluate import evaluate
from placement.routing.planning_text import planning_text
from placement.workload import Workload
from tests.examples import examples
from tests.placement.boxes import device
from tests.placement.shapes import small_shape

SHAPE = small_shape(num_moe_layers=3, num_experts=20, top_k=3)
SIZE = SHAPE.expert_bytes(16)
# One document of many tokens without stickiness: choices are independent.
ROUTER = SyntheticRouter(SHAPE, stickiness=0, document_tokens=2000)


def independent_problem(seed: int, drafts: int) -> PlanningProblem:
    """A head, sometimes a second device at home, one or two boxes; reading an expert takes 0.05 to 0.5 ms."""
    generator = np.random.default_rng(seed)
    sizes = generator.multinomial(
        SHAPE.num_routed_experts + int(generator.integers(0, 30)), [0.3, 0.2, 0.3, 0.2]
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
    trace = ROUTER.trace(domain, 2000, stream_seed=seed)
    stats = RoutingStats.from_trace(SHAPE, trace, domain.name)
    return PlanningProblem(SHAPE, tuple(devices), SIZE, stats, Workload(drafts=drafts))


def trace_of(problem: PlanningProblem) -> np.ndarray[tuple[int, ...], np.dtype[np.uint16]]:
    assert problem.stats is not None
    assert problem.stats.trace is not None
    return problem.stats.trace


@given(seed=st.integers(0, 10_000), drafts=st.integers(0, 2))
@examples(4)
def test_no_placement_beats_the_bounds(seed: int, drafts: int) -> None:
    check_that_no_candidate_beats_the_bounds(seed, drafts)


@pytest.mark.long
@given(seed=st.integers(0, 10_000), drafts=st.integers(0, 2))
def test_no_placement_of_many_beats_the_bounds(seed: int, drafts: int) -> None:
    check_that_no_candidate_beats_the_bounds(seed, drafts)


def check_that_no_candidate_beats_the_bounds(seed: int, drafts: int) -> None:
    problem = independent_problem(seed, drafts)
    trace = trace_of(problem)
    assert problem.stats is not None
    by_trace = trace_bound_s(problem, trace)
    priced = priced_bound_s(problem, trace)
    independent = independent_bound_s(problem, problem.stats.frequencies())
    assert by_trace > 0
    assert independent > 0
    for candidate in candidates(problem, planning_text(problem)):
        mean_s = evaluate(problem, candidate.table, trace).mean_s
        assert mean_s >= by_trace
        assert mean_s >= priced
        # An expectation, met by a sample up to its noise.
        assert mean_s >= 0.98 * independent


@given(seed=st.integers(0, 10_000), masks_seed=st.integers(0, 10_000))
@examples(4)
def test_replicas_do_not_beat_the_bounds_either(seed: int, masks_seed: int) -> None:
    problem = independent_problem(seed, drafts=0)
    masks = np.random.default_rng(masks_seed).random((4, SHAPE.num_moe_layers, SHAPE.num_experts)) < 0.4
    masks[0] |= ~masks.any(axis=0)
    table = HolderTable.from_masks(masks)
    held = table.experts_per_worker(4)
    roomy = tuple(
        replace(d, tier=replace(d.tier, budget_bytes=int(n) * SIZE))
        for d, n in zip(problem.devices, held, strict=True)
    )
    problem = replace(problem, devices=roomy)
    trace = trace_of(problem)[:600]
    frequencies = RoutingStats.from_trace(SHAPE, trace, "part").frequencies()
    mean_s = evaluate(problem, table, trace).mean_s
    assert mean_s >= lower_bound_s(problem, trace)
    assert mean_s >= 0.97 * independent_bound_s(problem, frequencies)


def faster(problem: PlanningProblem, which: int, **change: float) -> PlanningProblem:
    devices = list(problem.devices)
    devices[which] = replace(devices[which], **change)  # type: ignore[arg-type]
    return replace(problem, devices=tuple(devices))


@pytest.mark.parametrize("which", [0, 2])
def test_more_bandwidth_or_memory_never_raises_the_bounds(which: int) -> None:
    problem = independent_problem(4, drafts=1)
    found: PlanningDevice = problem.devices[which]
    roomier = replace(found.tier, budget_bytes=found.tier.budget_bytes * 2)
    assert problem.stats is not None
    for better in (
        faster(problem, which, bandwidth_bytes_per_s=found.bandwidth_bytes_per_s * 2),
        faster(problem, which, tier=roomier),  # type: ignore[arg-type]
    ):
        assert trace_bound_s(better, trace_of(problem)) <= trace_bound_s(problem, trace_of(problem)) * (
            1 + 1e-9
        )
        # Prices are found step by step: to about a percent.
        assert lower_bound_s(better, trace_of(problem)) <= 1.01 * lower_bound_s(problem, trace_of(problem))
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
    assert lower_bound_s(problem, trace_of(problem)) == pytest.approx(mean_s)


def tiny_problem(
    seed: int, num_devices: int, tokens_per_step: int, num_experts: int
) -> tuple[PlanningProblem, np.ndarray]:
    """Two layers of few experts and a short trace; small enough to try every placement."""
    generator = np.random.default_rng(seed)
    shape = small_shape(num_moe_layers=2, num_experts=num_experts, top_k=2)
    size = shape.expert_bytes(16)
    devices = tuple(
        device(
            LOCAL_WORKER if index == 0 else f"box{index}",
            int(generator.integers(3, 8)) if index else 10,
            size,
            gbytes_per_s=size / float(generator.uniform(0.5e-4, 5e-4)) / 1e9,
            round_trip_s=float(generator.choice([1e-5, 1e-4, 4e-4])),
        )
        for index in range(num_devices)
    )
    if generator.random() < 0.7:
        head = devices[0]
        small = replace(head.tier, budget_bytes=int(generator.integers(3, 8)) * size)
        devices = (replace(head, tier=small), *devices[1:])
    if generator.random() < 0.5:
        request_s, expert_s = generator.uniform(0, 1e-4, 2).tolist()
        software = Overheads(request_s=request_s, expert_s=expert_s, message_s=2e-4, message_row_s=1e-4)
        devices = tuple(replace(d, overheads=software) for d in devices)
    if generator.random() < 0.4:
        first, *others = devices
        devices = (first, *(replace(d, tier=replace(d.tier, worker="box", node="box")) for d in others))
    popularity = generator.dirichlet(np.full(num_experts, 0.7), size=2) + 1e-6
    noisy = np.log(popularity) + generator.gumbel(size=(6 * tokens_per_step, 2, num_experts))
    trace = np.argsort(-noisy, axis=2)[:, :, :2].astype(np.uint16)
    return PlanningProblem(shape, devices, size, workload=Workload(num_sequences=tokens_per_step)), trace


def best_of_all_placements_s(problem: PlanningProblem, trace: np.ndarray) -> float:
    """Every set of holders for every expert, every choice among them in every step; inf if none fits."""
    rates, num_devices = expert_rates(problem), len(problem.devices)
    tokens = problem.workload.tokens_per_step
    steps = trace.reshape(-1, tokens, *trace.shape[1:])
    subsets = [s for n in range(1, num_devices + 1) for s in itertools.combinations(range(num_devices), n)]

    def step_times_s(step: np.ndarray) -> list[tuple[dict[int, int], float]]:
        """Seconds of every assignment of the step's experts to devices."""
        touched = sorted(set(step.ravel().tolist()))
        found = []
        for chosen in itertools.product(range(num_devices), repeat=len(touched)):
            of = dict(zip(touched, chosen, strict=True))
            by_token = [[of[e] for e in token] for token in step.tolist()]
            boxes = [{int(rates.box[d]) for d in token} for token in by_token]
            rows = np.array([sum(int(box) in asked for asked in boxes) for box in rates.box])
            pairs = np.array([sum(token.count(d) for token in by_token) for d in range(num_devices)])
            distinct = np.bincount(chosen, minlength=num_devices)
            found.append((of, float(layer_seconds(rates, rows, distinct, pairs).max())))
        return found

    layers = []
    for row in range(2):
        options = [step_times_s(step) for step in steps[:, :, row]]
        by_use: dict[tuple[int, ...], float] = {}
        for holders in itertools.product(subsets, repeat=problem.shape.num_experts):
            use = tuple(sum(d in held for held in holders) for d in range(num_devices))
            seconds = np.mean(
                [
                    min(s for of, s in option if all(d in holders[e] for e, d in of.items()))
                    for option in options
                ]
            )
            by_use[use] = min(by_use.get(use, math.inf), float(seconds))
        layers.append(by_use)
    room = problem.capacities()
    return min(
        (
            first_s + second_s
            for (first, first_s), (second, second_s) in itertools.product(*(x.items() for x in layers))
            if (np.add(first, second) <= room).all()
        ),
        default=math.inf,
    )


@given(seed=st.integers(0, 10_000), tokens_per_step=st.integers(1, 2))
@examples(6)
def test_no_placement_at_all_beats_the_bound_on_tiny_instances(seed: int, tokens_per_step: int) -> None:
    problem, trace = tiny_problem(seed, 2, tokens_per_step, num_experts=5)
    assert lower_bound_s(problem, trace) <= best_of_all_placements_s(problem, trace) * (1 + 1e-9)


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(n, marks=pytest.mark.long) for n in range(2, 12))])
def test_nor_with_three_devices(seed: int) -> None:
    problem, trace = tiny_problem(seed, 3, 1, num_experts=4)
    assert lower_bound_s(problem, trace) <= best_of_all_placements_s(problem, trace) * (1 + 1e-9)


@pytest.mark.whole_search
@pytest.mark.parametrize("drafts", [0, 1])
def test_it_is_near_where_a_slow_link_rules(drafts: int) -> None:
    gbytes_per_s = SIZE / 1e-4 / 1e9
    devices = (
        device(LOCAL_WORKER, 42, SIZE, gbytes_per_s=gbytes_per_s),
        device("box", 24, SIZE, gbytes_per_s=gbytes_per_s, round_trip_s=3e-3),
    )
    problem = replace(independent_problem(1, drafts), devices=devices)
    mean_s = evaluate(problem, least_time(problem), trace_of(problem)).mean_s
    assert 0.95 * mean_s <= lower_bound_s(problem, trace_of(problem)) <= mean_s


def test_every_message_that_the_head_must_write_counts() -> None:
    """All six experts are needed, and no box has room for more than three."""
    shape = small_shape(num_moe_layers=1, num_experts=6, top_k=6)
    size = shape.expert_bytes(16)
    devices = (device(LOCAL_WORKER, 0, size), device("attic", 3, size), device("den", 3, size))
    devices = tuple(replace(d, overheads=Overheads(message_s=1.0)) for d in devices)
    trace = np.tile(np.arange(6, dtype=np.uint16), (100, 1, 1))
    problem = PlanningProblem(shape, devices, size, RoutingStats.from_trace(shape, trace, "all"))
    mean_s = evaluate(problem, least_time(problem), trace).mean_s
    assert 2.0 < lower_bound_s(problem, trace) <= mean_s
    assert mean_s < 2.1


def test_independence_may_only_raise_it() -> None:
    problem = independent_problem(3, drafts=0)
    short = trace_of(problem)[:50]
    assert lower_bound_s(problem, short, independent=True) >= lower_bound_s(problem, short)


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(n, marks=pytest.mark.long) for n in range(2, 24))])
def test_no_placement_on_boxes_whose_disks_share_their_cpu_beats_the_bound(seed: int) -> None:
    """The disk states an arithmetic that its box's CPU does not have; half of the time it is what rules."""
    draws = np.random.default_rng(seed)
    gflops = float(draws.choice([0.002, 1.0]))
    devices = [
        device("head", 18, SIZE, tier="vram", gbytes_per_s=0.2, gflops=1.0),
        device("home-ram", 24, SIZE, home=True, gbytes_per_s=0.03, gflops=gflops),
        device("home-disk", 60, SIZE, tier="disk", home=True, gbytes_per_s=0.01, gflops=99),
        device("den", 14, SIZE, gbytes_per_s=0.03, gflops=gflops),
    ]
    disk = device("den-disk", 18, SIZE, tier="disk", gbytes_per_s=0.01, gflops=99)
    devices.append(replace(disk, tier=replace(disk.tier, node="den")))
    trace = ROUTER.trace(GENERAL, 300, stream_seed=seed)
    stats = RoutingStats.from_trace(SHAPE, trace, "general")
    problem = PlanningProblem(SHAPE, tuple(devices), SIZE, stats, Workload(drafts=seed % 2))
    bound_s = lower_bound_s(problem, trace)
    assert bound_s > 0
    layers = (SHAPE.num_moe_layers, SHAPE.num_experts)
    for _ in range(6):
        masks = draws.random((5, *layers)) < 0.2
        masks[draws.integers(0, 5, layers), *np.indices(layers)] = True
        assert evaluate(problem, HolderTable.from_masks(masks), trace).mean_s >= bound_s
    assert evaluate(problem, least_time(problem), trace).mean_s >= bound_s
