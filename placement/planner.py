"""From a model, boxes and statistics to a plan."""

from __future__ import annotations

from collections.abc import Sequence

from placement.cluster_spec import ClusterSpec
from placement.model_shape import ModelShape
from placement.plan import Plan
from placement.policies import named_policy
from placement.problem import PlanningDevice, PlanningProblem, as_devices
from placement.replica_costs import priced_workers
from placement.stats import RoutingStats


def make_plan(
    shape: ModelShape,
    devices: ClusterSpec | Sequence[PlanningDevice],
    stats: RoutingStats | None = None,
    policy: str = "hottest-first",
    *,
    dtype: str,
    expert_bytes: int,
    epoch: int = 0,
) -> Plan:
    """Place a model's experts.

    Args:
        devices: a cluster, or the devices as the head sees them.
        dtype: the weights' form in memory, as the plan will state it.
        expert_bytes: of one expert in that form, `shape.expert_bytes(bits_per_weight(dtype))`.

    Raises:
        PlanDoesNotFit: the devices are too small together.
        RoutingFileError: statistics of another model.
        InputError: an unknown policy, or one that needs statistics without any.
    """
    place = named_policy(policy)
    if stats is not None:
        stats.check(shape)
    problem = PlanningProblem(shape, as_devices(devices), expert_bytes, stats)
    problem.check_fits()
    plan = Plan(
        model=shape.name,
        fingerprint=shape.fingerprint,
        moe_layers=shape.moe_layers,
        dtype=dtype,
        expert_bytes=expert_bytes,
        workers=priced_workers(problem),
        holder_table=place(problem),
        policy=policy,
        epoch=epoch,
    )
    plan.check_fits()
    return plan
