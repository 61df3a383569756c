"""From a model, boxes and statistics to a plan."""

from __future__ import annotations

from collections.abc import Sequence

from placement.cost.replica_costs import priced_tiers
from placement.given.cluster_spec import ClusterSpec
from placement.given.problem import PlanningDevice, PlanningProblem, problem_for
from placement.given.stats import RoutingStats
from placement.holders import HolderTable
from placement.model_shape import ModelShape
from placement.plan import Plan, PlannedLayer, like_layers
from placement.policies.registry import LEAST_TIME, find_policy, place
from placement.weight_format import run_dtype_of
from placement.workload import SINGLE_TOKEN, Workload

DEFAULT_POLICY = LEAST_TIME


def make_plan(
    shape: ModelShape,
    devices: ClusterSpec | Sequence[PlanningDevice],
    stats: RoutingStats | None = None,
    policy: str = DEFAULT_POLICY,
    *,
    dtype: str,
    expert_bytes: int,
    workload: Workload = SINGLE_TOKEN,
    epoch: int = 0,
) -> Plan:
    """Place a model's experts.

    Args:
        devices: a cluster, where the head's weights, KV cache and activations are charged first, or the
            devices as the head sees them, whose budgets are for experts alone.
        dtype: the weights' form in memory, as the plan will state it.
        expert_bytes: of one expert in that form, `shape.expert_bytes(planned_format(dtype).bits)`.
        workload: whose expected time the planner's own policy minimises.

    Raises:
        PlanDoesNotFit: the devices are too small together.
        RoutingFileError: statistics of another model.
        InputError: an unknown policy, or one that needs statistics without any.
    """
    find_policy(policy)
    if stats is not None:
        stats.check(shape)
    problem = problem_for(shape, devices, expert_bytes, stats, workload, expert_form=dtype)
    return as_plan(problem, place(problem, policy), policy, dtype, epoch)


def as_plan(
    problem: PlanningProblem,
    table: HolderTable,
    policy: str,
    form: str,
    epoch: int = 0,
    *,
    layers: tuple[PlannedLayer, ...] = (),
) -> Plan:
    """A placement with all that a run needs to know.

    Args:
        layers: where they differ in form or bytes; the problem has the bytes of the largest expert then.

    Raises:
        PlanDoesNotFit: it puts more on a device than its budget.
    """
    plan = Plan(
        model=problem.shape.name,
        fingerprint=problem.shape.fingerprint,
        layers=layers or like_layers(problem.shape.moe_layers, form, problem.expert_bytes),
        dtype=run_dtype_of(form),
        tiers=priced_tiers(problem),
        holder_table=table,
        policy=policy,
        epoch=epoch,
        workload=problem.workload,
        survive=problem.survive,
    )
    plan.check_fits()
    return plan
