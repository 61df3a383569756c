"""Costs of passes, corrected by what was measured."""

from __future__ import annotations

import math
import random

import pytest

from orchestrator.scheduling.native import MeasuredCosts
from placement.pass_costs import PassCosts

PREDICTED = PassCosts((1, 4, 16, 64, 256), (1.0, 2.0, 4.0, 8.0, 20.0), ((0.1, 0.01), (0.1, 0.01)))


def test_before_anything_is_measured_the_prediction_counts() -> None:
    costs = MeasuredCosts(PREDICTED)
    assert [costs.trunk_s(rows) for rows in (1, 4, 10, 300)] == [
        PREDICTED.trunk_s(n) for n in (1, 4, 10, 300)
    ]
    assert costs.drafting_s(2, 3) == PREDICTED.drafting_s(2, 6)
    assert costs.drafting_s(0, 3) == 0


def test_measured_sizes_are_met_and_the_others_lie_between_them() -> None:
    costs = MeasuredCosts(PREDICTED)
    luck = random.Random(3)
    for _ in range(200):
        for rows, factor in ((1, 3.0), (16, 0.5)):
            costs.learn_pass(rows, factor * PREDICTED.trunk_s(rows) * luck.uniform(0.95, 1.05))
    factors = [costs.trunk_s(rows) / PREDICTED.trunk_s(rows) for rows in (1, 2, 4, 8, 16, 200)]
    assert factors[0] == pytest.approx(3.0, rel=0.03)
    assert factors[-2:] == pytest.approx([0.5, 0.5], rel=0.03)
    assert factors == sorted(factors, reverse=True)


def test_times_that_change_are_followed_and_a_single_one_moves_little() -> None:
    costs = MeasuredCosts(PREDICTED)
    for _ in range(50):
        costs.learn_pass(4, 2.0)
    costs.learn_pass(4, 200.0)
    assert costs.trunk_s(4) < 2.2
    for _ in range(60):
        costs.learn_pass(4, 5.0)
    assert costs.trunk_s(4) == pytest.approx(5.0, rel=0.02)


def test_drafting_that_was_not_measured_is_corrected_as_the_nearest_depth() -> None:
    costs = MeasuredCosts(PREDICTED)
    costs.learn_drafting(1, 5, 3 * PREDICTED.drafting_s(1, 10))
    assert costs.drafting_s(2, 7) == pytest.approx(3 * PREDICTED.drafting_s(2, 14))


@pytest.mark.parametrize("order", [(1, 3), (3, 1)])
def test_of_two_depths_that_are_as_near_the_shallower_one_counts(order: tuple[int, int]) -> None:
    costs = MeasuredCosts(PassCosts((1,), (1.0,), ((0.1, 0.0),) * 3))
    for depth in order:
        costs.learn_drafting(depth, 1, {1: 0.3, 3: 0.3}[depth])
    assert costs.drafting_s(2, 1) == pytest.approx(0.6)


def test_drafting_is_compared_with_the_box_as_it_is() -> None:
    costs = MeasuredCosts(PREDICTED)
    for factor in (1.0, 2.0, 1.0):
        for _ in range(40):
            costs.learn_pass(4, factor * PREDICTED.trunk_s(4))
            if factor == 2.0:
                costs.learn_drafting(1, 4, factor * PREDICTED.drafting_s(1, 8))
    assert costs.drafting_s(1, 4) == pytest.approx(PREDICTED.drafting_s(1, 8), rel=0.05)


def test_what_is_no_measurement_changes_nothing() -> None:
    costs = MeasuredCosts(PREDICTED)
    costs.learn_pass(0, 1.0)
    costs.learn_pass(4, 0.0)
    costs.learn_drafting(0, 4, 1.0)
    costs.learn_drafting(2, 4, 0.0)
    for seconds in (math.nan, math.inf, -1.0):
        costs.learn_pass(4, seconds)
        costs.learn_drafting(2, 4, seconds)
    assert costs.trunk_s(4) == PREDICTED.trunk_s(4)
    assert costs.drafting_s(2, 4) == PREDICTED.drafting_s(2, 8)
