"""Plans that survive losses: each expert has its boxes, and speed is near what exact solutions reach."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.exact import Size
from benchmarks.exact_survival import exact_survival, problem_of
from placement.given.problem import PlanningProblem
from placement.given.stats import RoutingStats
from placement.given.traces import CODING, GENERAL, Domain, SyntheticRouter
from placement.holders import HolderTable
from placement.policies.cover import Boxes
from placement.policies.least_time.policy import least_time
from placement.policies.registry import BASELINES, place
from placement.replay.evaluate import evaluate
from tests.placement.boxes import device
from tests.placement.shapes import small_shape

SHAPE = small_shape(num_moe_layers=3, num_experts=24, top_k=4)
SIZE = SHAPE.expert_bytes(16)
READ_GBYTES_PER_S = SIZE / 1e-4 / 1e9


def problem(survive: int, room: int = 50) -> PlanningProblem:
    rates = {"head": 4, "den": 2, "attic": 1}
    devices = tuple(
        device(
            name,
            20 if name == "head" else room,
            SIZE,
            gbytes_per_s=rate * READ_GBYTES_PER_S,
            round_trip_s=1e-4,
        )
        for name, rate in rates.items()
    )
    trace = SyntheticRouter(SHAPE).trace(CODING, 600)
    stats = RoutingStats.from_trace(SHAPE, trace, CODING.name)
    return PlanningProblem(SHAPE, devices, SIZE, stats, survive=survive)


def short_of(given: PlanningProblem, table: HolderTable) -> int:
    masks = table.masks(len(given.devices))
    return int(Boxes.of(given).short(masks, given.survive).sum())


def test_every_expert_has_its_boxes_and_speed_does_not_suffer_where_memory_is_plenty() -> None:
    given = problem(1, room=72)
    trace = SyntheticRouter(SHAPE).trace(CODING, 600, stream_seed=1)
    table, plain = least_time(given), least_time(replace(given, survive=0))
    assert short_of(given, table) == 0
    assert (table.experts_per_worker(3) <= given.capacities()).all()
    assert evaluate(given, table, trace).mean_s <= 1.01 * evaluate(given, plain, trace).mean_s


def test_with_too_little_memory_as_many_as_there_is_room_for() -> None:
    given = problem(1, room=40)
    table = least_time(given)
    # 20 of 72 on the head; 52 need 104 places and there are 80.
    assert short_of(given, table) == 24
    assert (table.experts_per_worker(3) == given.capacities()).all()


@pytest.mark.parametrize("policy", sorted({*BASELINES} - {"one-box"}))
def test_any_policys_plan_is_given_its_second_holders(policy: str) -> None:
    given = problem(1, room=60)
    table = place(given, policy)
    assert short_of(given, table) == 0
    assert (table.experts_per_worker(3) <= given.capacities()).all()


@pytest.mark.whole_search
@pytest.mark.parametrize(
    ("cluster", "domain"),
    [
        ("two equal boxes", CODING),
        ("uneven, no room to spare", CODING),
        pytest.param("a fast box, some room", GENERAL, marks=pytest.mark.long),
        pytest.param("plenty", CODING, marks=pytest.mark.long),
        pytest.param("plenty", GENERAL, marks=pytest.mark.long),
    ],
)
def test_the_planner_is_within_one_percent_of_the_exact_solution(cluster: str, domain: Domain) -> None:
    given = problem_of(Size(2, 10, 2, 1, 8), cluster, domain, losses=1)
    assert given.stats is not None
    trace = given.stats.trace
    assert trace is not None
    best = exact_survival(given, trace, time_limit_s=3600.0)
    assert best is not None
    # Solved: what was found is what nothing can beat.
    assert best.mean_s == pytest.approx(best.bound_s, rel=1e-3)
    table = least_time(given)
    assert short_of(given, table) == 0
    ours_s = evaluate(given, table, trace).mean_s
    assert best.bound_s * (1 - 1e-9) <= ours_s <= 1.01 * best.mean_s
