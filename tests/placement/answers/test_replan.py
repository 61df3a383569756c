"""From a plan in use to a better one: within the budget, never worse, and it says when that has paid."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from placement.answers.replan import Replan, replan, transfer_seconds
from placement.errors import PlanDoesNotFit
from placement.given.problem import PlanningProblem
from placement.given.stats import RoutingStats
from placement.given.traces import CODING, GENERAL, Domain, SyntheticRouter
from placement.holders import HolderTable
from placement.policies.baselines.fixed import balanced_replicas, hottest_per_layer, uniform
from placement.policies.cover import Boxes
from placement.policies.least_time.policy import least_time
from placement.replay.evaluate import evaluate
from placement.units import size
from placement.workload import Workload
from tests.placement.boxes import device
from tests.placement.shapes import small_shape

SHAPE = small_shape(num_moe_layers=3, num_experts=24, top_k=4)
SIZE = SHAPE.expert_bytes(16)
READ_GBYTES_PER_S = SIZE / 1e-4 / 1e9
ROUTER = SyntheticRouter(SHAPE)


def problem(domain: Domain = CODING, spare: int = 0) -> PlanningProblem:
    devices = (
        device("head", 36 + spare, SIZE, gbytes_per_s=4 * READ_GBYTES_PER_S),
        device("attic", 36 + spare, SIZE, gbytes_per_s=READ_GBYTES_PER_S, round_trip_s=1e-4),
    )
    stats = RoutingStats.from_trace(SHAPE, ROUTER.trace(domain, 800), domain.name)
    return PlanningProblem(SHAPE, devices, SIZE, stats)


def arrivals(current: HolderTable, table: HolderTable) -> int:
    return sum(int((table.mask(d) & ~current.mask(d)).sum()) for d in range(2))


def held_out_s(table: HolderTable, domain: Domain = CODING) -> float:
    return evaluate(problem(domain), table, ROUTER.trace(domain, 1200, stream_seed=1)).mean_s


@pytest.mark.parametrize("spare", [0, 10])
@pytest.mark.parametrize("budget", [0, 7, 10_000])
def test_no_more_is_moved_than_the_budget_allows(budget: int, spare: int) -> None:
    given = problem(spare=spare)
    current = uniform(given)
    found = replan(given, current, budget_bytes=budget * SIZE)
    assert found.moved_experts == arrivals(current, found.table) <= budget
    assert found.moved_bytes == found.moved_experts * SIZE
    assert (found.table.table[:, :, 0] >= 0).all()
    assert (found.table.experts_per_worker(2) <= given.capacities()).all()
    assert found.after_s <= found.before_s


def test_more_budget_gains_more_up_to_a_plan_from_nothing() -> None:
    given = problem()
    current = uniform(given)
    seconds = [
        held_out_s(replan(given, current, budget_bytes=moves * SIZE).table) for moves in (0, 5, 20, 10_000)
    ]
    assert seconds[0] == held_out_s(current)
    assert all(later < 0.99 * earlier for earlier, later in itertools.pairwise(seconds))
    assert seconds[-1] < 1.03 * held_out_s(least_time(given))


def test_a_budget_of_seconds_is_kept() -> None:
    given = problem()
    current = uniform(given)
    whole_s = replan(given, current).transfer_s
    half = replan(given, current, budget_s=whole_s / 2)
    assert whole_s / 8 < half.transfer_s <= whole_s / 2
    assert half.after_s < half.before_s
    assert replan(given, current, budget_s=0.0).moved_experts == 0


def test_what_is_good_already_stays() -> None:
    given = problem()
    found = replan(given, least_time(given), budget_bytes=4 * SIZE)
    assert found.moved_experts <= 4
    assert found.after_s > 0.99 * found.before_s
    noise = replace(given, stats=RoutingStats.from_trace(SHAPE, ROUTER.trace(CODING, 3), "three tokens"))
    assert held_out_s(replan(noise, least_time(given)).table) < 1.02 * held_out_s(least_time(given))


def test_a_plan_for_other_traffic_moves_to_the_new() -> None:
    old = hottest_per_layer(problem(GENERAL))
    found = replan(problem(CODING), old, budget_bytes=30 * SIZE)
    assert held_out_s(found.table) < 0.9 * held_out_s(old)


def test_copies_in_use_are_kept_where_they_fit() -> None:
    given = problem(spare=10)
    current = balanced_replicas(given)
    assert current.has_replicas
    found = replan(given, current, budget_bytes=2 * SIZE)
    assert found.moved_experts <= 2
    assert found.table.experts_per_worker(2).sum() >= current.experts_per_worker(2).sum() - 4


def test_moves_take_as_long_as_the_busiest_link() -> None:
    given = problem(spare=10)
    current = uniform(given)
    masks = np.stack([current.mask(d) for d in range(2)])
    # Six come from the attic, over a link of 1 Gbit/s; nothing goes back.
    arriving = np.argwhere(masks[1])[:6]
    masks[0, arriving[:, 0], arriving[:, 1]] = True
    masks[1, arriving[:, 0], arriving[:, 1]] = False
    table = HolderTable.from_masks(masks)
    link_s, memory_s = 6 * SIZE / (1e9 / 8), 6 * SIZE / (READ_GBYTES_PER_S * 1e9)
    assert transfer_seconds(given, current, table) == pytest.approx(max(link_s, memory_s))
    assert transfer_seconds(given, current, current) == 0


def test_it_has_paid_when_as_many_tokens_came_out() -> None:
    given = problem()
    found: Replan = replan(given, uniform(given), head_s=2e-4)
    assert found.payback_s is not None
    before, after = 1 / (found.before_s + 2e-4), 1 / (found.after_s + 2e-4)
    assert (found.payback_s - found.transfer_s) * after == pytest.approx(found.payback_s * before)
    assert replan(given, uniform(given), budget_bytes=0).payback_s is None
    assert math.isfinite(found.payback_s)


def test_a_current_plan_that_does_not_fit_is_refused() -> None:
    given = problem()
    too_much = HolderTable.from_single(np.zeros((3, 24), dtype=np.int16))
    with pytest.raises(PlanDoesNotFit, match=f"'head' holds {size(36 * SIZE)} more"):
        replan(given, too_much)


@pytest.mark.parametrize("seed", [0, 1, 2, *(pytest.param(n, marks=pytest.mark.long) for n in range(3, 12))])
def test_boxes_that_hold_nothing_before_and_after_are_no_trouble(seed: int) -> None:
    draws = np.random.default_rng(seed)
    num_devices, num_empty = int(draws.integers(2, 5)), int(draws.integers(1, 4))
    rooms = draws.integers(72 // num_devices + 1, 73, num_devices).tolist()
    filled = [
        device("head" if i == 0 else f"box{i}", room, SIZE, gbytes_per_s=float(draws.uniform(10, 200)))
        for i, room in enumerate(rooms)
    ]
    # Far away: nothing ever goes there.
    empty = [device(f"far{i}", 60, SIZE, round_trip_s=1.0, gbits_per_s=0.01) for i in range(num_empty)]
    ratio = float(draws.choice([0.0, 8.0]))
    given = replace(problem(), devices=(*filled, *empty), workload=Workload(prompt_tokens_per_token=ratio))
    current = uniform(replace(given, devices=tuple(filled)))
    found = replan(given, current, budget_bytes=int(draws.integers(0, 60)) * SIZE)
    assert (found.table.experts_per_worker(len(given.devices)) <= given.capacities()).all()
    assert found.after_s + found.prompt_after_s <= found.before_s + found.prompt_before_s
    assert transfer_seconds(given, current, current) == 0


def test_a_move_that_pays_by_prompts_alone_is_one() -> None:
    given = replace(problem(), workload=Workload(prompt_tokens_per_token=1000.0))
    found = replan(given, uniform(given))
    assert found.payback_s is not None
    assert found.after_s + found.prompt_after_s < found.before_s + found.prompt_before_s
    plain = replan(problem(), uniform(given))
    assert plain.prompt_before_s == plain.prompt_after_s == 0


def three_boxes(domain: Domain) -> PlanningProblem:
    devices = [
        device(name, room, SIZE, gbytes_per_s=rate * READ_GBYTES_PER_S, round_trip_s=1e-4)
        for name, room, rate in (("head", 20, 4), ("den", 60, 2), ("attic", 60, 1))
    ]
    return replace(problem(domain), devices=tuple(devices), survive=1)


def short_of(given: PlanningProblem, table: HolderTable) -> int:
    return int(Boxes.of(given).short(table.masks(3), given.survive).sum())


@pytest.mark.parametrize("budget", [5, 30, 10_000])
def test_a_plan_that_survives_losses_still_does_after_a_move(budget: int) -> None:
    current = least_time(three_boxes(GENERAL))
    given = three_boxes(CODING)
    assert short_of(given, current) == 0
    found = replan(given, current, budget_bytes=budget * SIZE)
    assert short_of(given, found.table) == 0
    assert found.moved_experts <= budget
    assert found.after_s <= found.before_s


def test_second_holders_are_worth_a_move_that_gains_no_speed() -> None:
    given = three_boxes(CODING)
    current = least_time(replace(given, survive=0))
    current = HolderTable.from_single(current.table[:, :, 0])
    assert short_of(given, current) > 0
    assert short_of(given, replan(given, current).table) == 0
