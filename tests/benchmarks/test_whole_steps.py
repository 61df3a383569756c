"""Tokens/s of whole steps: the best number of drafts, and what several rows cost on real kernels."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.studies.device_figures import (
    ACCEPTANCE,
    CPU_ROWS,
    FORM,
    FREE_ROWS,
    GPU_ROWS,
    RowCosts,
    memory,
)
from benchmarks.studies.homes import answer
from benchmarks.studies.step_map import FAMILIES, margin
from benchmarks.studies.two_boxes import gain, verdict
from benchmarks.studies.whole_steps import (
    DEPTHS,
    EXPERT_BYTES,
    SHAPE,
    best_depth,
    head_step_seconds,
    moe_seconds,
    problem_of,
    shortest,
    together,
    workload,
)
from placement.given.cluster_spec import ClusterSpec, NodeSpec
from placement.given.problem import planning_devices
from placement.given.stats import RoutingStats
from placement.given.traces import GENERAL, SyntheticRouter
from placement.policies.registry import POLICIES

ROOM = SHAPE.num_routed_experts * EXPERT_BYTES


def step_seconds(gbytes_per_s: float, rows: RowCosts, context: int) -> tuple[float, ...]:
    """Of one box that holds everything, by drafts."""
    trace = SyntheticRouter(SHAPE).trace(GENERAL, 768)
    stats = RoutingStats.from_trace(SHAPE, trace, "a text")
    home = NodeSpec("home", None, (memory(gbytes_per_s, ROOM, rows),), None)
    problem = problem_of(ClusterSpec("home", (home,)), stats)
    table = POLICIES["one-box"](problem)
    return together(moe_seconds(problem, table, trace), head_step_seconds(problem, context))


def test_drafts_hold_only_behind_those_that_hold() -> None:
    first, second, third = ACCEPTANCE
    assert workload(0).tokens_out_per_step == 1
    expected = 1 + first + first * second + first * second * third
    assert workload(3).tokens_out_per_step == pytest.approx(expected)


@pytest.mark.parametrize("rows", [CPU_ROWS, GPU_ROWS, FREE_ROWS])
@pytest.mark.parametrize("gbytes_per_s", [25, 220])
def test_one_row_takes_as_long_as_reading_and_more_rows_what_was_measured(
    rows: RowCosts, gbytes_per_s: float
) -> None:
    home = NodeSpec("home", None, (memory(gbytes_per_s, ROOM, rows),), None)
    (device,) = planning_devices(ClusterSpec("home", (home,)))
    parameters = 10**9
    read_s = parameters * 4.5 / 8 / (gbytes_per_s * 1e9)
    for count, cost in rows.by_rows:
        assert device.multiply_s(FORM, parameters, count, read_s) == pytest.approx(cost * read_s)


def test_one_box_gains_from_drafts_what_was_measured_on_a_gpu() -> None:
    tokens_per_s = np.array([35.4, 45.6, 42.7, 40.0])
    speeds = [
        workload(drafts).tokens_out_per_step / seconds
        for drafts, seconds in enumerate(step_seconds(300, GPU_ROWS, 0))
    ]
    assert np.array(speeds) / speeds[0] == pytest.approx(tokens_per_s / tokens_per_s[0], rel=0.03)
    assert best_depth(step_seconds(300, GPU_ROWS, 0)).drafts == 1


def test_more_drafts_are_best_where_rows_are_free() -> None:
    measured, free = (best_depth(step_seconds(60, rows, 4096)) for rows in (CPU_ROWS, FREE_ROWS))
    assert free.drafts > measured.drafts
    assert free.tokens_per_s > measured.tokens_per_s


def test_the_best_depth_is_the_fastest_and_of_equals_the_shallowest() -> None:
    flat = [workload(drafts).tokens_out_per_step for drafts in DEPTHS]
    assert best_depth(flat).drafts == 0
    assert best_depth(flat).tokens_per_s == pytest.approx(1.0)
    flat[2] /= 2
    assert best_depth(flat).drafts == 2
    assert best_depth(flat, sequences=8).tokens_per_s == pytest.approx(16.0)


def test_what_does_not_fit_has_no_speed() -> None:
    assert best_depth(shortest([])).tokens_per_s == 0
    assert shortest([[4, 1, 9, 9], [2, 3, 9, 8]]) == (2, 1, 9, 8)


def test_pooling_is_held_against_the_best_that_does_without() -> None:
    row = {"experts tokens/s": 12.0, "whole layers tokens/s": 10.0, "one box tokens/s": 6.0}
    assert gain(row) == pytest.approx(1.2)
    assert margin(row) == pytest.approx(1.2)
    assert margin(row | {"experts tokens/s": 5.0}) == pytest.approx(2.0)
    assert set(row) == {f"{family} tokens/s" for family in FAMILIES}


@pytest.mark.parametrize(
    ("times", "word"),
    [(1.3, "yes"), (1.05, "no difference to promise"), (0.95, "no difference to promise"), (0.7, "no")],
)
def test_a_gain_within_what_predictions_are_off_is_none(times: float, word: str) -> None:
    assert verdict(times) == word


def test_an_answer_names_the_slowest_link_that_pays() -> None:
    assert answer({"Wi-Fi": 0.6, "1 Gbit/s": 1.05, "2.5 Gbit/s": 1.2, "10 Gbit/s": 1.3}) == (
        "from 2.5 Gbit/s on: +20% to +30%"
    )
    assert answer({"Wi-Fi": 0.6, "10 Gbit/s": 1.3}) == "from 10 Gbit/s on: +30%"
    assert answer({"Wi-Fi": 1.09}) == "no"
