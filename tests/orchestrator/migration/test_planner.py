"""Whether to move, as the planner sees it: only after a change, only for a gain, and when that pays."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from orchestrator.cli.migration_planner import payback_s, problem_of, propose
from orchestrator.migration.migration import MigrationLimits, Propose
from orchestrator.migration.online_routing import Lately, OnlineRouting
from placement.answers.planner import as_plan
from placement.answers.replan import Replan
from placement.given.problem import PlanningProblem
from placement.given.stats import RoutingStats
from placement.given.traces import CODING, GENERAL, Domain, SyntheticRouter
from placement.holders import HolderTable
from placement.plan import Plan
from placement.policies.least_time.policy import least_time
from tests.placement.boxes import device
from tests.placement.shapes import small_shape

SHAPE = small_shape(num_moe_layers=3, num_experts=24, top_k=4)
SIZE = SHAPE.expert_bytes(32)
READ_GBYTES_PER_S = SIZE / 1e-4 / 1e9
LIMITS = MigrationLimits(rate_bytes_per_s=10 * SIZE)
ROUTER = SyntheticRouter(SHAPE)


@pytest.fixture(scope="module")
def plan() -> Plan:
    """The head and a box half as fast, planned for code."""
    devices = (
        device("head", 36, SIZE, gbytes_per_s=4 * READ_GBYTES_PER_S),
        device("attic", 36, SIZE, gbytes_per_s=READ_GBYTES_PER_S, round_trip_s=1e-4),
    )
    stats = RoutingStats.from_trace(SHAPE, ROUTER.trace(CODING, 2000), "code")
    problem = PlanningProblem(SHAPE, devices, SIZE, stats)
    return as_plan(problem, least_time(problem), "least-time", "float32")


def lately(first: Domain, then: Domain) -> Lately:
    routing = OnlineRouting(SHAPE.moe_layers, SHAPE.num_experts, half_life_tokens=512, piece_tokens=256)
    for domain, seed in ((first, 1), (then, 2)):
        for token in ROUTER.trace(domain, 8 * 256, stream_seed=seed).astype(np.int32):
            for row, layer in enumerate(SHAPE.moe_layers):
                routing.record(layer, token[None, row])
    return routing.lately()


def test_traffic_as_before_moves_nothing(plan: Plan) -> None:
    proposal = propose(Propose(plan, lately(CODING, CODING)), SHAPE, LIMITS)
    assert proposal.target is None
    assert proposal.p_value is not None
    assert proposal.p_value > 0.01
    assert proposal.reason.startswith("the traffic is as before (p = ")


def test_other_traffic_moves_experts_and_says_when_that_has_paid(plan: Plan) -> None:
    proposal = propose(Propose(plan, lately(CODING, GENERAL)), SHAPE, LIMITS)
    assert proposal.p_value is not None
    assert proposal.p_value <= 0.01
    assert proposal.target is not None
    assert proposal.target != plan.holder_table
    assert proposal.payback_s is not None
    assert 0 < proposal.payback_s < math.inf
    assert "experts makes decoding" in proposal.reason
    replace(plan, holder_table=proposal.target).check_fits()


def test_too_little_text_is_no_reason(plan: Plan) -> None:
    known = lately(CODING, GENERAL)
    few = replace(known, before=known.before[:1], since=known.since[:1])
    assert propose(Propose(plan, few), SHAPE, LIMITS).reason == "too little text yet to see a change"


def test_a_move_has_paid_when_it_has_brought_the_tokens_that_it_cost(plan: Plan) -> None:
    target = np.array(plan.holder_table.table[:, :, 0])
    target[0, :10] = 1 - target[0, :10]
    found = Replan(HolderTable.from_single(target), 10, 10 * SIZE, 0.0, 2e-3, 1e-3, 0.0, 0.0, None)
    arriving = max(np.bincount(target[0, :10], minlength=2))
    move_s = arriving / 10
    seconds = payback_s(plan, found, 10 * SIZE)
    # A tenth less of 500 tokens/s meanwhile, then 500 tokens/s more.
    assert seconds == pytest.approx(move_s + 0.1 * 500 * move_s / 500)
    assert payback_s(plan, replace(found, after_s=2e-3), 10 * SIZE) == math.inf
    assert payback_s(plan, found, 10 * SIZE, head_s=1e-2) > seconds


def test_a_plan_tells_the_planner_its_devices_again(plan: Plan) -> None:
    stats = RoutingStats.from_trace(SHAPE, ROUTER.trace(CODING, 50), "code")
    problem = problem_of(replace(plan, survive=1), SHAPE, stats)
    assert problem.survive == 1
    assert problem.capacities().tolist() == [36, 36]
    head, attic = problem.devices
    assert (head.round_trip_s, head.is_home) == (0.0, True)
    assert attic.bandwidth_bytes_per_s == pytest.approx(SIZE / 1e-4, rel=0.1)
