"""The planner's own policy on text it has not seen: never behind a baseline, ahead where it can be."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from placement.cost.rates import expert_rates
from placement.given.cluster_file import load_cluster
from placement.given.cluster_spec import Overheads
from placement.given.problem import PlanningDevice, PlanningProblem, problem_for
from placement.given.stats import RoutingStats
from placement.given.traces import CODING, GENERAL, Domain, SyntheticRouter
from placement.holders import HolderTable
from placement.model_shape import STEP_3_5_FLASH
from placement.policies.baselines.fixed import hottest_first
from placement.policies.least_time import policy
from placement.policies.least_time.boundary_search import (
    group_messages_seconds,
    group_seconds,
    heat_sample,
    improve,
)
from placement.policies.least_time.heat_blocks import search_heat_blocks
from placement.policies.least_time.objective import objective_s
from placement.policies.least_time.policy import Candidate, candidates, least_time
from placement.replay.evaluate import evaluate
from placement.routing.planning_text import PlanningText
from placement.workload import Workload
from tests.placement.boxes import device
from tests.placement.shapes import small_shape

CLUSTERS = Path(__file__).parents[4] / "docs/studies/clusters"
SHAPE = small_shape(num_moe_layers=4, num_experts=32, top_k=3)
SIZE = SHAPE.expert_bytes(16)
ROUTER = SyntheticRouter(SHAPE)
# Slow memory for tiny experts, so that reading one takes 0.1 ms as in the published model.
READ_GBYTES_PER_S = SIZE / 1e-4 / 1e9


def boxes(round_trip_s: float, home: int = 67, remote: int = 83) -> tuple[PlanningDevice, ...]:
    return (
        device("head", home, SIZE, gbytes_per_s=READ_GBYTES_PER_S),
        device("attic", remote, SIZE, gbytes_per_s=READ_GBYTES_PER_S, round_trip_s=round_trip_s),
    )


def problem(
    devices: tuple[PlanningDevice, ...], domain: Domain = GENERAL, drafts: int = 0, tokens: int = 1500
) -> PlanningProblem:
    stats = RoutingStats.from_trace(SHAPE, ROUTER.trace(domain, tokens), domain.name)
    return PlanningProblem(SHAPE, devices, SIZE, stats, Workload(drafts=drafts))


def held_out_s(given: PlanningProblem, table_of: object, domain: Domain = GENERAL) -> float:
    assert callable(table_of)
    return evaluate(given, table_of(given), ROUTER.trace(domain, 1500, stream_seed=1)).mean_s


def long(*case: object) -> object:
    return pytest.param(*case, marks=pytest.mark.long)


@pytest.mark.whole_search
@pytest.mark.parametrize(
    ("round_trip_s", "domain", "drafts"),
    [
        (1e-5, GENERAL, 2),
        (3e-4, GENERAL, 2),
        (3e-3, CODING, 0),
        long(1e-5, GENERAL, 0),
        long(1e-5, CODING, 0),
        long(1e-5, CODING, 2),
        long(3e-4, GENERAL, 0),
        long(3e-4, CODING, 0),
        long(3e-4, CODING, 2),
        long(3e-3, GENERAL, 0),
        long(3e-3, GENERAL, 2),
        long(3e-3, CODING, 2),
    ],
)
def test_it_is_not_slower_than_the_best_baseline_on_text_it_has_not_seen(
    round_trip_s: float, domain: Domain, drafts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Candidate] = []

    def kept(problem: PlanningProblem, text: PlanningText) -> list[Candidate]:
        found.extend(candidates(problem, text))
        return found

    monkeypatch.setattr(policy, "candidates", kept)
    given = problem(boxes(round_trip_s), domain, drafts)
    held_out = ROUTER.trace(domain, 1500, stream_seed=1)
    ours_s = held_out_s(given, least_time, domain)
    best_s = {
        searched: min(
            evaluate(given, c.table, held_out).mean_s for c in found if (c.policy is None) is searched
        )
        for searched in (True, False)
    }
    assert ours_s <= 1.02 * min(best_s.values())


@functools.cache
def across_a_slow_link() -> tuple[PlanningProblem, float]:
    """A problem, and the planner's seconds of other text for it."""
    given = problem(boxes(round_trip_s=2e-3))
    return given, held_out_s(given, least_time)


@pytest.mark.whole_search
def test_a_slow_link_is_where_it_gains() -> None:
    given, ours_s = across_a_slow_link()
    assert ours_s < 0.9 * held_out_s(given, hottest_first)


@pytest.mark.whole_search
def test_a_box_that_only_costs_time_is_left_out() -> None:
    given = problem(boxes(round_trip_s=0.1, home=SHAPE.num_routed_experts))
    assert least_time(given).experts_per_worker(2).tolist() == [SHAPE.num_routed_experts, 0]


@pytest.mark.whole_search
def test_counts_alone_are_enough() -> None:
    given, ours_s = across_a_slow_link()
    assert given.stats is not None
    from_counts = replace(given, stats=given.stats.without_trace())
    assert held_out_s(from_counts, least_time) < 1.05 * ours_s


def test_a_trace_of_one_token_is_not_fitted_to() -> None:
    given = problem(boxes(round_trip_s=3e-4), tokens=1)
    assert (least_time(given).table[:, :, 0] >= 0).all()


@pytest.mark.parametrize("message_s", [0.0, 2e-4])
def test_a_search_never_ends_worse_than_it_began_nor_over_capacity(message_s: float) -> None:
    generator = np.random.default_rng(0)
    devices = tuple(
        device(name, 34, SIZE, gbytes_per_s=0.01 * (i + 1), round_trip_s=1e-4 * i)
        for i, name in enumerate(("head", "d1", "d2", "d3", "d4"))
    )
    given = problem((replace(devices[0], overheads=Overheads(message_s=message_s)), *devices[1:]))
    assert given.stats is not None
    assert given.stats.trace is not None
    sample = heat_sample(given.stats.trace, given.stats.counts.astype(np.int64), 1, 200)
    groups = [[i] for i in range(5)]
    seconds = group_seconds(expert_rates(given), groups, sample)
    messages_s = group_messages_seconds(expert_rates(given), groups, sample)
    assert messages_s.any() == (message_s > 0)
    capacities = np.full(5, 34)
    for _ in range(5):
        order = generator.permutation(np.repeat(np.arange(5), [26, 26, 26, 25, 25])).reshape(4, 32)
        sizes = np.stack([(order == g).sum(axis=1) for g in range(5)], axis=1)
        start = np.concatenate([np.zeros((4, 1), dtype=np.int64), np.cumsum(sizes, axis=1)], axis=1)
        _, before = improve(start, sample, seconds, capacities, (), messages_s)
        boundaries, after = improve(start, sample, seconds, capacities, (8, 4, 2, 1), messages_s)
        _, measured = improve(boundaries, sample, seconds, capacities, (), messages_s)
        assert after < before
        assert measured == pytest.approx(after)
        assert (np.diff(boundaries, axis=1) >= 0).all()
        assert (np.diff(boundaries, axis=1).sum(axis=0) <= capacities).all()
        assert boundaries[:, 0].tolist() == [0] * 4
        assert boundaries[:, -1].tolist() == [32] * 4


def test_dear_messages_draw_boundaries_to_fewer_boxes() -> None:
    """Two boxes as fast as the head: without message costs a layer asks both, with them it stays at home."""
    devices = tuple(
        device(name, 128, SIZE, gbytes_per_s=READ_GBYTES_PER_S, round_trip_s=0.0, gbits_per_s=1e6)
        for name in ("head", "attic", "cellar")
    )
    sent = []
    for message_s in (0.0, 1e-3):
        given = problem((replace(devices[0], overheads=Overheads(message_s=message_s)), *devices[1:]))
        assert given.stats is not None
        assert given.stats.trace is not None
        trace = given.stats.trace
        blocks = search_heat_blocks(given, given.stats.counts.astype(np.int64), trace)[0]
        table = HolderTable.from_single(blocks.holders(given))
        sent.append(evaluate(given, table, trace).remote_layers.mean())
    assert sent[0] == SHAPE.num_moe_layers
    assert sent[1] == 0


@pytest.mark.parametrize("num_devices", [8, long(128)])
def test_the_published_shape_is_planned_within_every_budget(num_devices: int) -> None:
    """How fast it is, benchmarks.planner says."""
    size = STEP_3_5_FLASH.expert_bytes(4.5)
    room = 14_000 // num_devices
    devices = [
        device("head" if i == 0 else f"d{i}", room + i, size, gbytes_per_s=40 + 7 * (i % 5))
        for i in range(num_devices)
    ]
    given = PlanningProblem(STEP_3_5_FLASH, tuple(devices), size, published_stats(300))
    table = least_time(given)
    assert (table.table[:, :, 0] >= 0).all()
    assert (table.experts_per_worker(num_devices) <= given.capacities()).all()


@functools.cache
def published_stats(num_tokens: int) -> RoutingStats:
    trace = SyntheticRouter(STEP_3_5_FLASH).trace(CODING, num_tokens)
    return RoutingStats.from_trace(STEP_3_5_FLASH, trace, "synthetic")


@pytest.mark.whole_search
@pytest.mark.long
@pytest.mark.parametrize("name", ["gpu-and-two-cpu-boxes", "gpu-workstation", "three-cpu-boxes", "wifi"])
def test_a_plan_that_weighs_prompts_is_no_worse_by_them_than_one_that_does_not(name: str) -> None:
    """Small ones are weighed in test_tiers."""
    size = STEP_3_5_FLASH.expert_bytes(4.5)
    cluster = load_cluster(CLUSTERS / f"{name}.yaml")
    # Fewer and the search fits them, not the text.
    stats = published_stats(1500)
    assert stats.trace is not None
    workload = Workload(context=4096, head_bits_per_weight=4.5, prompt_tokens_per_token=8.0)
    weighed = problem_for(STEP_3_5_FLASH, cluster, size, stats, workload)
    plain = replace(weighed, workload=replace(workload, prompt_tokens_per_token=0.0))
    ours, other = (objective_s(weighed, least_time(given), stats.trace) for given in (weighed, plain))
    assert ours <= other * 1.001
