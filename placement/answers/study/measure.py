"""One plan, judged on text it was not made from."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from placement.answers.study.routing_source import Routing
from placement.cost.head import head_seconds
from placement.given.cluster_spec import ClusterSpec
from placement.given.problem import PlanningProblem, planning_devices
from placement.holders import HolderTable
from placement.model_shape import ModelShape
from placement.policies.registry import RUN_POLICIES, find_policy
from placement.replay.evaluate import Evaluation, evaluate
from placement.routing.text import Text
from placement.workload import Workload


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """A policy on held-out text.

    `table` is its placement, None where it has none (`policies.RUN_POLICIES`); `hit_share` the share of
    experts found in the fast memory, None for policies that have no such thing.
    `step_s` is `moe_s` (expected over the held-out passes) and `head_s` together; `bound_by` the device that
    most layers waited for; `plan_s` how long planning took.
    """

    table: HolderTable | None
    tokens_per_s: float
    step_s: float
    step_p95_s: float
    moe_s: float
    head_s: float
    remote_layers_per_token: float
    bound_by: str
    replicas: int
    plan_s: float
    hit_share: float | None = None


def planning_problem(
    shape: ModelShape, cluster: ClusterSpec, expert_bytes: int, routing: Routing, workload: Workload
) -> PlanningProblem:
    """What a policy is given where a cluster's budgets are room for experts, the head's memory left out.

    `problem_for` charges that too. `routing` is in the order of `workload`'s passes.

    Raises PlanDoesNotFit where the cluster has too little memory for the experts.
    """
    problem = PlanningProblem(shape, planning_devices(cluster), expert_bytes, routing.planned, workload)
    problem.check_fits()
    return problem


def measure(problem: PlanningProblem, policy: str, routing: Routing) -> Measured:
    """Plan with `policy`, then replay the held-out trace; or run the policy on it.

    Raises:
        PlanDoesNotFit: the policy's own rule leaves no room.
        InputError: the held-out trace is shorter than one pass.
    """
    if policy in RUN_POLICIES:
        result = RUN_POLICIES[policy](problem, Text(routing.held_out, routing.document_tokens))
        return _measured(problem, None, result, routing, 0.0)
    start = time.perf_counter()
    table = find_policy(policy)(problem)
    return measure_table(problem, table, routing, time.perf_counter() - start)


def measure_table(
    problem: PlanningProblem, table: HolderTable, routing: Routing, plan_s: float = 0.0
) -> Measured:
    """Replay the held-out trace through a placement."""
    return _measured(problem, table, evaluate(problem, table, routing.held_out), routing, plan_s)


def _measured(
    problem: PlanningProblem,
    table: HolderTable | None,
    result: Evaluation,
    routing: Routing,
    plan_s: float,
) -> Measured:
    workload = problem.workload
    head_s = head_seconds(problem).total_s if result.head_s is None else result.head_s
    step_s = result.mean_s + head_s
    replicas = 0
    if table is not None:
        held = int(table.experts_per_worker(len(problem.devices)).sum())
        replicas = held - problem.shape.num_routed_experts
    return Measured(
        table=table,
        tokens_per_s=workload.tokens_out_per_step / step_s,
        step_s=step_s,
        step_p95_s=float(np.quantile(result.moe_seconds, 0.95)) + head_s,
        moe_s=result.mean_s,
        head_s=head_s,
        remote_layers_per_token=float(result.remote_layers.mean()) / workload.tokens_out_per_step,
        bound_by=problem.devices[int(result.bound_share.argmax())].tier.name,
        replicas=replicas,
        plan_s=plan_s,
        hit_share=result.hit_share,
    )
