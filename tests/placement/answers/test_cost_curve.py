"""The curve that a server starts with: the prediction's own times, by rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from placement.answers.cost_curve import cost_curve
from placement.answers.planner import as_plan
from placement.answers.prediction import predict
from placement.cost.head import head_seconds
from placement.errors import InputError
from placement.given.problem import PlanningProblem
from placement.given.stats import RoutingStats
from placement.given.traces import CODING, SyntheticRouter
from placement.model_shape import STEP_3_5_FLASH
from placement.pass_costs import PassCosts, costs_of_reading
from placement.policies.baselines.fixed import uniform
from placement.routing.planning_text import planning_text
from placement.workload import Workload
from tests.placement.boxes import device
from tests.placement.shapes import small_shape

SHAPE = small_shape(num_moe_layers=4, num_experts=32, top_k=4)
SIZE = SHAPE.expert_bytes(16)
READ_GBYTES_PER_S = SIZE / 1e-4 / 1e9
STATS = RoutingStats.from_trace(SHAPE, SyntheticRouter(SHAPE).trace(CODING, 900), "synthetic")


def problem(workload: Workload, gflops: float = 1e6) -> PlanningProblem:
    devices = (
        device("head", 64, SIZE, gbytes_per_s=READ_GBYTES_PER_S, gflops=gflops),
        device("attic", 80, SIZE, gbytes_per_s=READ_GBYTES_PER_S, gflops=gflops),
    )
    return PlanningProblem(SHAPE, devices, SIZE, STATS, workload)


def curve_of(given: PlanningProblem) -> PassCosts:
    return cost_curve(given, as_plan(given, uniform(given), "a test", "bfloat16"), planning_text(given))


@pytest.mark.parametrize("sequences", [1, 4, 8])
def test_a_pass_takes_what_is_predicted_of_a_step_of_so_many_sequences(sequences: int) -> None:
    given = problem(Workload(num_sequences=sequences, context=100))
    plan = as_plan(given, uniform(given), "a test", "bfloat16")
    expected = predict(given, plan, planning_text(given)).step_time_s
    # The curve takes fewer steps of the text than the prediction.
    assert curve_of(given).trunk_s(sequences) == pytest.approx(expected, rel=0.03)


def test_drafts_take_what_is_predicted_of_the_mtp_layers() -> None:
    given = problem(Workload(drafts=1, context=0))
    curve = curve_of(given)
    assert len(curve.draft_s) == SHAPE.num_mtp_layers == 1
    # One sequence brings one row.
    assert curve.drafting_s(1, 1) == pytest.approx(head_seconds(given).mtp_s, rel=1e-6)
    eight = head_seconds(replace(given, workload=Workload(num_sequences=8, drafts=1, context=0)))
    assert curve.drafting_s(1, 8) == pytest.approx(eight.mtp_s, rel=1e-6)


def test_each_row_more_takes_longer_and_less_long_than_the_one_before() -> None:
    curve = curve_of(problem(Workload(context=100)))
    seconds = [curve.trunk_s(rows) for rows in range(1, 300)]
    assert all(np.diff(seconds) >= 0)
    # Two rows share few experts, thirty-two nearly all.
    assert seconds[1] > 1.2 * seconds[0]
    assert seconds[31] < 10 * seconds[0]


def test_a_head_without_a_device_has_no_curve() -> None:
    given = problem(Workload())
    plan = as_plan(given, uniform(given), "a test", "bfloat16")
    text = planning_text(given)
    nowhere = replace(given, devices=given.devices[1:])
    with pytest.raises(InputError, match="head"):
        cost_curve(nowhere, plan, text)


@pytest.mark.parametrize(
    ("rows", "seconds"), [((), ()), ((2,), (1.0,)), ((1, 1), (1.0, 1.0)), ((1,), (0.0,))]
)
def test_what_is_no_curve_is_refused(rows: tuple[int, ...], seconds: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        PassCosts(rows, seconds)


def test_between_known_passes_lies_a_straight_line_and_beyond_them_the_last_one() -> None:
    curve = PassCosts((1, 3, 5), (1.0, 2.0, 2.5), ((0.1, 0.01), (0.2, 0.02)))
    found = [curve.trunk_s(rows) for rows in (0, 1, 2, 3, 4, 5, 9)]
    assert found == pytest.approx([1.0, 1.0, 1.5, 2.0, 2.25, 2.5, 3.5])
    assert [curve.drafting_s(depth, 4) for depth in range(4)] == pytest.approx([0, 0.14, 0.42, 0.42])
    assert PassCosts((1,), (0.3,)).trunk_s(7) == 0.3


def test_without_figures_of_the_boxes_the_bytes_of_a_pass_say_what_rows_cost() -> None:
    """The same proportions as with figures of one box whose memory bounds all, and routing that is even."""
    given = replace(problem(Workload(context=0, head_bits_per_weight=16)), stats=None)
    box = device("head", 200, SIZE, gbytes_per_s=50, gflops=1e9)
    alone = replace(given, devices=(box,))
    expected, found = curve_of(alone), costs_of_reading(SHAPE, 16)
    for rows in (1, 2, 4, 8, 16, 32):
        assert found.trunk_s(rows) == pytest.approx(expected.trunk_s(rows), rel=0.05)
    assert found.draft_s[0][0] == pytest.approx(expected.drafting_s(1, 1), rel=0.05)


def test_a_row_of_the_published_model_reads_its_active_weights() -> None:
    curve = costs_of_reading(STEP_3_5_FLASH, 4.5, 100e9)
    # 11 billion of them.
    assert curve.trunk_s(1) == pytest.approx(11e9 * 4.5 / 8 / 100e9, rel=0.05)
    # Half of that is the head's, which is read once for both rows.
    assert 1.4 < curve.trunk_s(2) / curve.trunk_s(1) < 1.5
    assert len(curve.draft_s) == 3
