"""Whether to move, as the planner sees it: only after a change, only for a gain, and when that pays."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from orchestrator.cli.migration_planner import last_change, payback_s, problem_of, propose
from orchestrator.migration.migration import MigrationLimits, Propose
from orchestrator.migration.online_routing import Lately
from placement.answers.planner import as_plan
from placement.given.problem import PlanningProblem
from placement.given.stats import RoutingStats, count_experts
from placement.given.traces import CODING, GENERAL, Domain, SyntheticRouter
from placement.holders import HolderTable
from placement.plan import Plan
from placement.policies.least_time.policy import least_time
from placement.replay.evaluate import evaluate
from placement.units import compared
from tests.placement.boxes import device
from tests.placement.shapes import small_shape

SHAPE = small_shape(num_moe_layers=3, num_experts=24, top_k=4)
SIZE = SHAPE.expert_bytes(32)
READ_GBYTES_PER_S = SIZE / 1e-4 / 1e9
LIMITS = MigrationLimits(rate_bytes_per_s=10 * SIZE)
ROUTER = SyntheticRouter(SHAPE)


def planned_for(domain: Domain, num_tokens: int = 2000) -> Plan:
    """The head and a box half as fast."""
    devices = (
        device("head", 36, SIZE, gbytes_per_s=4 * READ_GBYTES_PER_S),
        device("attic", 36, SIZE, gbytes_per_s=READ_GBYTES_PER_S, round_trip_s=1e-4),
    )
    stats = RoutingStats.from_trace(SHAPE, ROUTER.trace(domain, num_tokens), domain.name)
    problem = PlanningProblem(SHAPE, devices, SIZE, stats)
    return as_plan(problem, least_time(problem), "least-time", "float32")


@pytest.fixture(scope="module")
def plan() -> Plan:
    return planned_for(CODING)


def pieces(
    domain: Domain, num_pieces: int = 8, seed: int = 1, num_tokens: int = 512
) -> tuple[NDArray[np.uint16], ...]:
    """Of whole documents."""
    trace = ROUTER.trace(domain, num_pieces * num_tokens, stream_seed=seed)
    return tuple(trace.reshape(num_pieces, num_tokens, *trace.shape[1:]))


def lately(first: Domain, then: Domain, step_s: float = 0.0) -> Lately:
    return Lately(pieces(first), pieces(then, seed=2), step_s=step_s)


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


def test_the_gain_is_that_of_the_replay_of_text_that_the_move_was_not_planned_for(plan: Plan) -> None:
    head_s = 3e-4
    text = lately(CODING, GENERAL)
    held_out = np.concatenate(text.since)[round(8 * 512 * 2 / 3) :]
    problem = problem_of(plan, SHAPE, RoutingStats.from_trace(SHAPE, held_out, "held out"))
    now_s = evaluate(problem, plan.holder_table, held_out).mean_s
    proposal = propose(Propose(plan, replace(text, step_s=now_s + head_s)), SHAPE, LIMITS)
    assert proposal.target is not None
    then_s = evaluate(problem, proposal.target, held_out).mean_s
    gain = (now_s + head_s) / (then_s + head_s) - 1
    assert gain > 0.05
    assert f"makes decoding {compared(1 + gain)}" in proposal.reason
    assert proposal.payback_s == pytest.approx(
        payback_s(plan, proposal.target, LIMITS.rate_bytes_per_s, now_s + head_s, then_s + head_s), rel=1e-3
    )
    # Text of the same kind that comes later gains as much, within what documents differ by.
    fresh = ROUTER.trace(GENERAL, 8192, stream_seed=77)
    later = [
        evaluate(problem, table, fresh).mean_s + head_s for table in (plan.holder_table, proposal.target)
    ]
    assert later[0] / later[1] - 1 == pytest.approx(gain, rel=0.25)


@pytest.mark.parametrize("domain", [CODING, GENERAL])
def test_noise_moves_nothing(domain: Domain) -> None:
    """A plan for the text that comes is left as it is, although the text before it was another."""
    made = planned_for(domain, 8000)
    before = pieces(GENERAL if domain is CODING else CODING)
    every = pieces(domain, 25 * 8, seed=5)
    for first in range(0, len(every), 8):
        proposal = propose(
            Propose(made, Lately(before, every[first : first + 8], step_s=1e-3)), SHAPE, LIMITS
        )
        assert proposal.reason.startswith("the traffic has changed"), first
        assert proposal.target is None, (first, proposal.reason)


def test_no_change_is_seen_where_there_is_none_but_by_the_rate_of_false_alarms(plan: Plan) -> None:
    alarms = 0
    every = pieces(CODING, 50 * 16, seed=6, num_tokens=256)
    for first in range(0, len(every), 16):
        text = Lately(every[first : first + 8], every[first + 8 : first + 16])
        proposal = propose(Propose(plan, text), SHAPE, LIMITS)
        alarms += not proposal.reason.startswith("the traffic is as before")
        assert proposal.target is None, (first, proposal.reason)
    # Five or more of 50 at 1% each: once in 600 such tests.
    assert alarms < 5


@pytest.mark.parametrize("num_new", [3, 5, 8])
def test_what_came_before_the_change_is_not_planned_for(num_new: int) -> None:
    old, new = pieces(CODING, 16), pieces(GENERAL, num_new, seed=2)
    before, since = (
        np.stack([count_experts(piece, SHAPE.num_experts) for piece in some])
        for some in (old[:8], (*old[8 : 16 - num_new], *new))
    )
    assert last_change(before, since) == 8 - num_new
    # A change that is younger than what a plan needs: as much as it needs is left.
    assert last_change(before, since[: 8 - num_new + 1]) == max(8 - num_new + 1 - 3, 0)


def test_a_move_is_found_while_part_of_the_newest_text_is_from_before_the_change(plan: Plan) -> None:
    old, new = pieces(CODING, 16), pieces(GENERAL, 5, seed=2)
    proposal = propose(Propose(plan, Lately(old[:8], (*old[8:11], *new))), SHAPE, LIMITS)
    assert proposal.target is not None, proposal.reason


def test_a_move_has_paid_when_it_has_brought_the_tokens_that_it_cost(plan: Plan) -> None:
    target = np.array(plan.holder_table.table[:, :, 0])
    target[0, :10] = 1 - target[0, :10]
    table = HolderTable.from_single(target)
    arriving = max(np.bincount(target[0, :10], minlength=2))
    move_s = arriving / 10
    # A tenth less of 500 tokens/s meanwhile, then 500 tokens/s more.
    seconds = payback_s(plan, table, 10 * SIZE, 2e-3, 1e-3)
    assert seconds == pytest.approx(move_s + 0.1 * 500 * move_s / 500)
    assert payback_s(plan, table, 10 * SIZE, 2e-3, 2e-3) == math.inf
    assert payback_s(plan, table, 10 * SIZE, 1.2e-2, 1.1e-2) > seconds


def test_a_plan_tells_the_planner_its_devices_again(plan: Plan) -> None:
    stats = RoutingStats.from_trace(SHAPE, ROUTER.trace(CODING, 50), "code")
    problem = problem_of(replace(plan, survive=1), SHAPE, stats)
    assert problem.survive == 1
    assert problem.capacities().tolist() == [36, 36]
    head, attic = problem.devices
    assert (head.round_trip_s, head.is_home) == (0.0, True)
    assert attic.bandwidth_bytes_per_s == pytest.approx(SIZE / 1e-4, rel=0.1)
