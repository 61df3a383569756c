"""The plan of `--workers N`: experts over equal workers of this machine."""

from __future__ import annotations

import math

from placement.answers.planner import make_plan
from placement.given.problem import PlanningDevice
from placement.given.stats import RoutingStats
from placement.model_shape import ModelShape
from placement.plan import LOCAL_WORKER, Plan, PlannedTier
from placement.weight_format import planned_format


def even_plan(shape: ModelShape, num_workers: int, dtype: str, stats: RoutingStats | None = None) -> Plan:
    """Experts over equal workers of this machine; all in the head's process when `num_workers` is 0."""
    expert_bytes = shape.expert_bytes(planned_format(dtype).bits)
    names = [f"worker-{i}" for i in range(num_workers)] or [LOCAL_WORKER]
    budget_bytes = math.ceil(shape.num_routed_experts / len(names)) * expert_bytes
    devices = [
        PlanningDevice(
            tier=PlannedTier(name, "this-machine", "cpu", "ram", budget_bytes),
            is_home=True,
            # Equal devices: a policy looks at ratios only.
            bandwidth_bytes_per_s=1.0,
            ffn_flops_per_s=1.0,
        )
        for name in names
    ]
    return make_plan(shape, devices, stats, "uniform", dtype=dtype, expert_bytes=expert_bytes)
