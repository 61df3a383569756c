"""The plan of `--workers N`: experts over equal workers of this machine."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from placement.answers.planner import make_plan
from placement.errors import InputError
from placement.given.problem import PlanningDevice
from placement.given.stats import RoutingStats
from placement.holders import HolderTable
from placement.model_shape import ModelShape
from placement.plan import LOCAL_WORKER, Plan, PlannedTier, planned_layers
from placement.weight_format import ExpertFormat, planned_format


def even_plan(
    shape: ModelShape,
    num_workers: int,
    dtype: str,
    stats: RoutingStats | None = None,
    *,
    forms: Mapping[int, ExpertFormat] | None = None,
    survive: int = 0,
) -> Plan:
    """Experts over equal workers of this machine; all in the head's process when `num_workers` is 0.

    Args:
        dtype: what the head computes with and sends.
        forms: what each layer's experts are kept in; None for `dtype`.
        survive: losses of workers that every expert survives: it is held by one worker more than that.

    Raises:
        InputError: fewer workers than that.
    """
    if survive and survive >= num_workers:
        raise InputError(
            f"--survive {survive}: expected --workers {survive + 1} or more, found --workers {num_workers}"
        )
    forms = forms or dict.fromkeys(shape.moe_layers, ExpertFormat.of(planned_format(dtype)))
    layers = planned_layers(shape, forms)
    # Equal workers get equal numbers, so the largest expert decides.
    expert_bytes = max((layer.expert_bytes for layer in layers), default=1)
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
    plan = make_plan(shape, devices, stats, "uniform", dtype=dtype, expert_bytes=expert_bytes)
    # Nobody said what it is made for: a run's keys and values go by its dtype.
    plan = dataclasses.replace(plan, layers=layers, dtype=dtype, workload=None, survive=survive)
    return _with_neighbours(plan) if survive else plan


def _with_neighbours(plan: Plan) -> Plan:
    """Every expert on `plan.survive` workers more; what one worker holds is shared out over all others."""
    num_workers = len(plan.tiers)
    masks = plan.holder_table.masks(num_workers)
    held = masks.copy()
    for worker in range(num_workers):
        layer, expert = np.nonzero(held[worker])
        for copy in range(plan.survive):
            steps = 1 + (np.arange(len(layer)) + copy) % (num_workers - 1)
            masks[(worker + steps) % num_workers, layer, expert] = True
    expert_bytes = max(layer.expert_bytes for layer in plan.layers)
    tiers = tuple(
        dataclasses.replace(tier, budget_bytes=number * expert_bytes)
        for tier, number in zip(plan.tiers, masks.sum(axis=(1, 2)).tolist(), strict=True)
    )
    return dataclasses.replace(plan, tiers=tiers, holder_table=HolderTable.from_masks(masks))
