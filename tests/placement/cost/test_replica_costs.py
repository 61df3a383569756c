"""The costs a plan carries are the cost model's."""

from __future__ import annotations

import pytest

from placement.answers.planner import make_plan
from placement.cost.rates import expert_rates
from placement.cost.replica_costs import replica_costs
from placement.given.problem import PlanningProblem
from tests.placement.boxes import device
from tests.placement.shapes import small_shape

SHAPE = small_shape()
SIZE = 10**7
DEVICES = (device("head", 20, SIZE, gbytes_per_s=900), device("box", 20, SIZE, round_trip_s=1e-3))


def test_costs_are_round_trip_row_and_read_and_on_the_head_the_shared_expert() -> None:
    problem = PlanningProblem(SHAPE, DEVICES, SIZE)
    rates, costs = expert_rates(problem), replica_costs(problem)
    assert costs.ask_s.tolist() == pytest.approx([rates.busy_s[0], 1e-3 + rates.row_wire_s[1]])
    assert costs.expert_s.tolist() == pytest.approx([SIZE / 900e9, SIZE / 50e9])


def test_a_plan_carries_them() -> None:
    plan = make_plan(SHAPE, DEVICES, policy="uniform", dtype="q4", expert_bytes=SIZE)
    costs = replica_costs(PlanningProblem(SHAPE, DEVICES, SIZE, expert_form="q4"))
    assert plan.replica_costs.ask_s.tolist() == costs.ask_s.tolist()
    assert plan.replica_costs.expert_s.tolist() == costs.expert_s.tolist()
