"""One plan, judged on text it was not made from."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from placement.bound import trace_bound_s
from placement.cluster_spec import ClusterSpec
from placement.cost import head_seconds
from placement.evaluate import evaluate
from placement.holders import HolderTable
from placement.model_shape import ModelShape
from placement.policies import named_policy
from placement.problem import PlanningProblem, planning_devices
from placement.study.routing_source import Routing
from placement.workload import Workload


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """A policy's placement on held-out text.

    `step_s` is `moe_s` (expected over the held-out passes) and `head_s` together; `bound_by` the device that
    most layers waited for; `plan_s` how long planning took. `lower_bound_s` holds for every placement on the
    held-out trace (placement/bound.py).
    """

    table: HolderTable
    tokens_per_s: float
    step_s: float
    step_p95_s: float
    moe_s: float
    head_s: float
    remote_layers_per_token: float
    bound_by: str
    replicas: int
    plan_s: float
    lower_bound_s: float

    @property
    def gap(self) -> float:
        return self.step_s / self.lower_bound_s - 1


def planning_problem(
    shape: ModelShape, cluster: ClusterSpec, expert_bytes: int, routing: Routing, workload: Workload
) -> PlanningProblem:
    """What a policy is given; `routing` in the order of `workload`'s passes.

    Raises PlanDoesNotFit where the cluster has too little memory for the experts.
    """
    problem = PlanningProblem(shape, planning_devices(cluster), expert_bytes, routing.planned, workload)
    problem.check_fits()
    return problem


def measure(problem: PlanningProblem, policy: str, routing: Routing) -> Measured:
    """Plan with `policy`, then replay the held-out trace.

    Raises:
        PlanDoesNotFit: the policy's own rule leaves no room.
        InputError: the held-out trace is shorter than one pass.
    """
    start = time.perf_counter()
    table = named_policy(policy)(problem)
    return measure_table(problem, table, routing, time.perf_counter() - start)


def measure_table(
    problem: PlanningProblem, table: HolderTable, routing: Routing, plan_s: float = 0.0
) -> Measured:
    """Replay the held-out trace through a placement."""
    workload = problem.workload
    result = evaluate(problem, table, routing.held_out)
    head_s = head_seconds(problem).total_s
    step_s = result.mean_s + head_s
    held = int(table.experts_per_worker(len(problem.devices)).sum())
    return Measured(
        table=table,
        tokens_per_s=workload.tokens_out_per_step / step_s,
        step_s=step_s,
        step_p95_s=float(np.quantile(result.moe_seconds, 0.95)) + head_s,
        moe_s=result.mean_s,
        head_s=head_s,
        remote_layers_per_token=float(result.remote_layers.mean()) / workload.tokens_out_per_step,
        bound_by=problem.devices[int(result.bound_share.argmax())].worker.name,
        replicas=held - problem.shape.num_routed_experts,
        plan_s=plan_s,
        lower_bound_s=trace_bound_s(problem, routing.held_out) + head_s,
    )
