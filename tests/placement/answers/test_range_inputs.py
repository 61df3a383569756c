"""What memory, drafts and routing alone make of a plan's speed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from placement.answers.planner import as_plan
from placement.answers.prediction import predict
from placement.answers.prediction_range import range_of
from placement.answers.range_inputs import TEXT_SHIFTS, InputEffect, PlanRange, plan_range, shifted
from placement.given.kernel_rates import KernelRates
from placement.given.problem import PlanningDevice, PlanningProblem
from placement.given.stats import RoutingStats
from placement.given.traces import CODING, SyntheticRouter
from placement.policies.baselines.fixed import one_box, uniform
from placement.routing.planning_text import planning_text
from placement.workload import Workload
from tests.placement.boxes import device
from tests.placement.shapes import small_shape
from tests.placement.spreads import spreads

SHAPE = small_shape(num_moe_layers=4, num_experts=32, top_k=4)
SIZE = SHAPE.expert_bytes(16)
STATS = RoutingStats.from_trace(SHAPE, SyntheticRouter(SHAPE).trace(CODING, 900), "synthetic")
# Memory alone takes time: arithmetic is as good as free.
SLOW = {"gbytes_per_s": 1e-3, "gflops": 1e9}


def problem(
    *devices: PlanningDevice, stats: RoutingStats | None = STATS, workload: Workload | None = None
) -> PlanningProblem:
    given = devices or (device("head", 200, SIZE, **SLOW),)
    return PlanningProblem(SHAPE, given, SIZE, stats, workload or Workload(context=100))


def found(given: PlanningProblem) -> PlanRange:
    table = uniform(given) if len(given.devices) > 1 else one_box(given)
    plan, text = as_plan(given, table, "a test", "bfloat16"), planning_text(given)
    return plan_range(given, plan, text, predict(given, plan, text), spreads())


def effect(given: PlanningProblem, name: str) -> InputEffect:
    return next(each for each in found(given).inputs if each.input == name)


def test_on_one_box_memory_is_all_of_the_range() -> None:
    made = found(problem())
    assert [each.input for each in made.inputs] == ["memory", "routing"]
    memory, routing = made.inputs
    assert (memory.low, memory.high) == pytest.approx((0.7, 1.2), rel=1e-3)
    assert (routing.low, routing.high) == pytest.approx((1, 1))
    assert made.figures == range_of(("typed",), spreads())
    assert (made.speed.range.low, made.speed.range.high) == pytest.approx((0.7, 1.2))


def test_kernels_wait_for_memory_like_everything_else() -> None:
    one_row = KernelRates("bfloat16", (1, 2), (1e6, 1.5e6))
    head = replace(device("head", 200, SIZE, **SLOW), kernels=(one_row,))
    given = replace(problem(head), expert_form="bfloat16")
    memory = effect(given, "memory")
    assert (memory.low, memory.high) == pytest.approx((0.7, 1.2), rel=1e-3)


def test_round_trips_do_not_become_shorter_with_faster_memory() -> None:
    far = device("attic", 200, SIZE, **SLOW, round_trip_s=1.0)
    memory = effect(problem(device("head", 100, SIZE, **SLOW), far), "memory")
    assert 0.7 < memory.low < 1 < memory.high < 1.2


def test_a_probed_box_has_the_narrower_range() -> None:
    probed = replace(device("head", 200, SIZE, **SLOW), figures_from="probed")
    memory = effect(problem(probed), "memory")
    assert (memory.low, memory.high) == pytest.approx((0.95, 1.1), rel=1e-3)


def test_drafts_add_what_other_texts_make_of_them() -> None:
    plain = found(problem())
    drafted = problem(workload=Workload(drafts=1, accepted_drafts=0.8, acceptance=(0.8,), context=100))
    made = found(drafted)
    drafts = effect(drafted, "drafts")
    # One draft: 1.8 tokens a step, and the MTP layer takes no longer for what holds.
    low, high = ((1 + shifted(0.8, shift)) / 1.8 for shift in TEXT_SHIFTS)
    assert (drafts.low, drafts.high) == pytest.approx((low, high), rel=0.01)
    assert made.figures == plain.figures
    assert made.speed.range.low < plain.speed.range.low
    assert made.speed.range.high > plain.speed.range.high
    assert math.log(made.speed.range.high) == pytest.approx(
        math.hypot(
            *(math.log(side) for side in (made.figures.high, drafts.high, effect(drafted, "routing").high))
        )
    )


def test_the_mean_of_drafts_is_enough() -> None:
    mean = problem(workload=Workload(drafts=1, accepted_drafts=0.8, context=100))
    known = problem(workload=Workload(drafts=1, accepted_drafts=0.8, acceptance=(0.8,), context=100))
    assert effect(mean, "drafts") == effect(known, "drafts")


def test_drafts_that_never_hold_leave_nothing_open() -> None:
    none = Workload(drafts=1, accepted_drafts=0.0, acceptance=(0.0,), context=100)
    assert [each.input for each in found(problem(workload=none)).inputs] == ["memory", "routing"]


@pytest.mark.parametrize("chance", [0.0, 0.3, 0.89, 1.0])
def test_a_shift_of_log_odds_stays_a_chance(chance: float) -> None:
    low, high = (shifted(chance, shift) for shift in TEXT_SHIFTS)
    assert 0 <= low <= chance <= high <= 1
    assert shifted(shifted(chance, 0.4), -0.4) == pytest.approx(chance)


def two_memories(stats: RoutingStats | None) -> PlanningProblem:
    """The head reads ten times as fast as the box, so it matters which experts are asked for."""
    quick = device("head", 64, SIZE, gbytes_per_s=1e-2, gflops=1e9)
    slow = device("attic", 80, SIZE, gbytes_per_s=1e-3, gflops=1e9, round_trip_s=0.0)
    return problem(quick, slow, stats=stats)


def test_few_counts_leave_more_open_than_many() -> None:
    tokens = SyntheticRouter(SHAPE).trace(CODING, 12_000)
    few, many = (
        effect(two_memories(RoutingStats.from_trace(SHAPE, tokens[:number], "synthetic")), "routing")
        for number in (600, 12_000)
    )
    assert few.low < 1 < few.high
    assert few.size - 1 > 1.5 * (many.size - 1) > 0
    assert "600 tokens" in few.why


def test_without_counts_experts_may_be_used_as_unevenly_as_in_other_models() -> None:
    routing = effect(two_memories(None), "routing")
    assert routing.low <= 1 <= routing.high
    assert routing.size > 1
    assert "other models" in routing.why


def test_counts_that_say_nothing_are_like_none() -> None:
    even = np.full((SHAPE.num_moe_layers, SHAPE.num_experts), SHAPE.top_k, dtype=np.uint64)
    stats = RoutingStats.from_counts(SHAPE, even, SHAPE.num_experts, "even")
    assert "other models" in effect(two_memories(stats), "routing").why
