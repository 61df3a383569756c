"""The planner's side of a migration: has the traffic changed, where should experts be, when does that pay?"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from orchestrator.migration.migration import MigrationLimits, Proposal, Propose
from placement.answers.replan import replan
from placement.errors import InputError, PlanDoesNotFit
from placement.given.problem import PlanningDevice, PlanningProblem
from placement.given.stats import RoutingStats, count_experts
from placement.holders import HolderTable
from placement.model_shape import ModelShape
from placement.plan import LOCAL_WORKER, Plan
from placement.policies.least_time.objective import speed
from placement.routing.drift import drift_test
from placement.units import compared
from placement.workload import SINGLE_TOKEN

# A change is called where there is none at most this often.
_FALSE_ALARM_RATE = 0.01
# How much slower a move may make decoding meanwhile; its rate is chosen so.
_SLOWER = 0.1
# Of the text since the change there is so much before anybody plans for it, in pieces.
_FEWEST_PIECES = 3
# Of the text since the change; the rest of it judges the plan.
_PLANNED_FOR = 2 / 3
# That rest is cut into parts. The gain must be so much, and so many times its standard error over them.
_PARTS, _LEAST_GAIN, _ERRORS = 8, 0.02, 3.0
# Where a plan says nothing of its devices' speed, all read alike.
_UNKNOWN_READ_S, _UNKNOWN_ASK_S = 1e-4, 3e-4


def propose(asked: Propose, shape: ModelShape, limits: MigrationLimits) -> Proposal:
    """Look at the traffic: test for a change, plan again from the plan in use, reckon when that pays.

    The plan is made for the older part of the text since the change and judged on the rest of it, which it
    has not seen: what fits the older part by chance gains nothing there. What of a step the experts do not
    account for is the head's own time, which no move makes shorter.
    """
    lately, plan = asked.lately, asked.plan
    before, since = (_counts(pieces, shape) for pieces in (lately.before, lately.since))
    try:
        drift = drift_test(before, since, false_alarm_rate=_FALSE_ALARM_RATE)
    except InputError:
        return Proposal("too little text yet to see a change")
    if not drift.drifted:
        return Proposal(f"the traffic is as before (p = {drift.p_value:.2g})", p_value=drift.p_value)
    text = np.concatenate(lately.since[last_change(before, since) :])
    cut = round(len(text) * _PLANNED_FOR)
    problem = problem_of(plan, shape, RoutingStats.from_trace(shape, text[:cut], "this run's newest text"))
    changed = f"the traffic has changed (p = {drift.p_value:.2g})"
    try:
        target = replan(problem, plan.holder_table).table
    except PlanDoesNotFit as error:
        return Proposal(f"{changed}, but there is no other plan: {error}", p_value=drift.p_value)
    if target == plan.holder_table:
        return Proposal(f"{changed}, but no move gains anything", p_value=drift.p_value)
    now, then = _seconds(problem, plan.holder_table, target, text[cut:], lately.step_s)
    now_s, then_s = float(now.mean()), float(then.mean())
    error_s = float((now - then).std(ddof=1)) / math.sqrt(_PARTS)
    if now_s - then_s < max(_LEAST_GAIN * now_s, _ERRORS * error_s):
        why = f"the best move for it is no sure gain: {compared(now_s / then_s)} on the newest of it"
        return Proposal(f"{changed}, but {why}", p_value=drift.p_value)
    return Proposal(
        f"{changed}: moving {_arriving(plan, target).sum()} experts makes decoding "
        f"{compared(now_s / then_s)}",
        target,
        drift.p_value,
        payback_s(plan, target, limits.rate_bytes_per_s, now_s, then_s),
    )


def _seconds(
    problem: PlanningProblem,
    current: HolderTable,
    target: HolderTable,
    text: NDArray[np.uint16],
    step_s: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of a decode step under both, float64 [_PARTS] each: of successive parts of a text.

    Args:
        step_s: what a step takes under `current`; what of it experts do not account for is the head's.
    """
    parts = np.array_split(text, _PARTS)
    speeds = [[speed(problem, table, part) for part in parts] for table in (current, target)]
    head_s = max(step_s - float(np.mean([each.decode_s for each in speeds[0]])), 0.0)
    now, then = (np.array([each.total_s + head_s for each in some]) for some in speeds)
    return now, then


def last_change(before: NDArray[np.uint64], since: NDArray[np.uint64]) -> int:
    """How many of the first pieces of `since` go with those of `before`, so that both groups differ most.

    At least `_FEWEST_PIECES` are left, where there are so many.

    Args:
        before, since: [num_pieces, num_layers, num_experts] of the same experts, at least one piece each.
    """
    pieces = np.concatenate([before, since]).astype(np.float64)
    # Of choices that come at random, the variance is as large as the mean.
    scaled = (pieces / np.sqrt(np.maximum(pieces.sum(axis=0), 1.0))).reshape(len(pieces), -1)
    sums = scaled.cumsum(axis=0)
    last = max(len(since) - _FEWEST_PIECES, 0)
    first = np.arange(len(before), len(before) + last + 1)
    num_after = len(pieces) - first
    apart = sums[first - 1] / first[:, None] - (sums[-1] - sums[first - 1]) / num_after[:, None]
    return int((first * num_after * (apart**2).sum(axis=1)).argmax())


def payback_s(
    plan: Plan, target: HolderTable, rate_bytes_per_s: int, before_s: float, after_s: float
) -> float:
    """From a move's start until it has brought the tokens that its slowness cost, infinite if it never does.

    Workers load side by side at `rate_bytes_per_s` each, and decoding is a tenth slower meanwhile.

    Args:
        before_s, after_s: of a decode step, all of it.
    """
    tier_bytes = _arriving(plan, target).sum(axis=2) @ plan.expert_bytes
    worker_bytes = np.bincount(plan.worker_of_tier, weights=tier_bytes)
    move_s = float(worker_bytes.max()) / rate_bytes_per_s
    before, after = 1 / before_s, 1 / after_s
    if after <= before:
        return math.inf
    return move_s + _SLOWER * before * move_s / (after - before)


def _arriving(plan: Plan, target: HolderTable) -> NDArray[np.bool_]:
    """bool [num_tiers, num_layers, num_experts]: what devices must receive."""
    arriving: NDArray[np.bool_] = target.masks(len(plan.tiers)) & ~plan.holder_table.masks(len(plan.tiers))
    return arriving


def problem_of(plan: Plan, shape: ModelShape, stats: RoutingStats) -> PlanningProblem:
    """The planner's problem as far as a plan tells it: what its tiers cost to ask, and their budgets."""
    expert_bytes = int(plan.expert_bytes.max())
    homes = plan.tiers_at_home()
    devices: Sequence[PlanningDevice] = [
        PlanningDevice(
            tier=tier,
            is_home=bool(is_home),
            bandwidth_bytes_per_s=expert_bytes / (tier.expert_s or _UNKNOWN_READ_S),
            # What a tier takes for an expert counts as reading it.
            ffn_flops_per_s=math.inf,
            round_trip_s=0.0 if tier.worker == LOCAL_WORKER else tier.ask_s or _UNKNOWN_ASK_S,
        )
        for tier, is_home in zip(plan.tiers, homes.tolist(), strict=True)
    ]
    workload = plan.workload or SINGLE_TOKEN
    return PlanningProblem(shape, tuple(devices), expert_bytes, stats, workload, survive=plan.survive)


def _counts(pieces: Sequence[NDArray[np.uint16]], shape: ModelShape) -> NDArray[np.uint64]:
    """uint64 [num_pieces, num_layers, num_experts]."""
    found = [count_experts(piece, shape.num_experts) for piece in pieces]
    empty = np.zeros((0, shape.num_moe_layers, shape.num_experts), dtype=np.uint64)
    return np.stack(found) if found else empty


def give_way() -> None:
    """Let this process compute only while no other wants its core; the lowest priority still gets a share.

    It is here because a new process loads this module for it, and the run's own would take longer.
    """
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
