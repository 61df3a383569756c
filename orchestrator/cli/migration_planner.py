"""The planner's side of a migration: has the traffic changed, where should experts be, when does that pay?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from orchestrator.migration.migration import MigrationLimits, Proposal, Propose
from orchestrator.migration.online_routing import Lately
from placement.answers.replan import Replan, replan
from placement.errors import InputError, PlanDoesNotFit
from placement.given.apportion import apportion
from placement.given.problem import PlanningDevice, PlanningProblem
from placement.given.stats import RoutingStats
from placement.model_shape import ModelShape
from placement.plan import LOCAL_WORKER, Plan
from placement.routing.drift import drift_test
from placement.workload import SINGLE_TOKEN

# A change is called where there is none at most this often.
_FALSE_ALARM_RATE = 0.01
# How much slower a move may make decoding meanwhile; its rate is chosen so.
_SLOWER = 0.1
# Where a plan says nothing of its devices' speed, all read alike.
_UNKNOWN_READ_S, _UNKNOWN_ASK_S = 1e-4, 3e-4


def propose(asked: Propose, shape: ModelShape, limits: MigrationLimits) -> Proposal:
    """Look at the traffic: test for a change, plan again from the plan in use, reckon when that pays.

    What of a step the experts do not account for is the head's own time, which no move makes shorter.
    """
    lately, plan = asked.lately, asked.plan
    try:
        drift = drift_test(lately.before, lately.since, false_alarm_rate=_FALSE_ALARM_RATE)
    except InputError:
        return Proposal("too little text yet to see a change")
    if not drift.drifted:
        return Proposal(f"the traffic is as before (p = {drift.p_value:.2g})", p_value=drift.p_value)
    problem = problem_of(plan, shape, _stats(lately, shape))
    try:
        found = replan(problem, plan.holder_table)
    except PlanDoesNotFit as error:
        return Proposal(
            f"the traffic has changed, but there is no other plan: {error}", p_value=drift.p_value
        )
    changed = f"the traffic has changed (p = {drift.p_value:.2g})"
    if not found.moved_experts or found.after_s >= found.before_s:
        return Proposal(f"{changed}, but no move gains anything", p_value=drift.p_value)
    head_s = max(lately.step_s - found.before_s, 0.0)
    gain = (found.before_s + head_s) / (found.after_s + head_s) - 1
    return Proposal(
        f"{changed}: moving {found.moved_experts} experts makes decoding {gain:.1%} faster",
        found.table,
        drift.p_value,
        payback_s(plan, found, limits.rate_bytes_per_s, head_s),
    )


def payback_s(plan: Plan, found: Replan, rate_bytes_per_s: int, head_s: float = 0.0) -> float:
    """From a move's start until it has brought the tokens that its slowness cost, infinite if it never does.

    Workers load side by side at `rate_bytes_per_s` each, and decoding is a tenth slower meanwhile.
    """
    arriving = found.table.masks(len(plan.tiers)) & ~plan.holder_table.masks(len(plan.tiers))
    tier_bytes = arriving.sum(axis=2) @ plan.expert_bytes
    worker_bytes = np.bincount(plan.worker_of_tier, weights=tier_bytes)
    move_s = float(worker_bytes.max()) / rate_bytes_per_s
    before, after = (1 / (seconds + head_s) for seconds in (found.before_s, found.after_s))
    if after <= before:
        return math.inf
    return move_s + _SLOWER * before * move_s / (after - before)


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


def _stats(lately: Lately, shape: ModelShape) -> RoutingStats:
    """Counts that forget, as whole choices: every layer has as many."""
    num_tokens = max(round(lately.num_tokens), 1)
    counts = apportion(lately.counts, num_tokens * shape.top_k)
    return RoutingStats.from_counts(shape, counts, num_tokens, "this run's newest text")
