"""Systems and traces for simulator tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from placement.cost.replica_costs import priced_tiers
from placement.given.problem import PlanningDevice, PlanningProblem
from placement.holders import HolderTable
from placement.model_shape import ModelShape
from placement.plan import Plan, like_layers
from placement.replay.system import System
from placement.workload import SINGLE_TOKEN, Workload
from tests.placement.boxes import device
from tests.placement.shapes import small_shape

SHAPE = small_shape(num_moe_layers=3, num_experts=10, top_k=3)
SIZE = SHAPE.expert_bytes(16)
# Slow enough that memory, wire and round trip are of one magnitude.
DEVICES = (
    device("head", 30, SIZE, gbytes_per_s=0.01),
    device("den", 30, SIZE, gbytes_per_s=0.005, gbits_per_s=0.013),
    device("attic", 30, SIZE, gbytes_per_s=0.02, gbits_per_s=0.0017),
)


def random_trace(
    seed: int, num_tokens: int, shape: ModelShape = SHAPE
) -> np.ndarray[Any, np.dtype[np.uint16]]:
    generator = np.random.default_rng(seed)
    order = np.argsort(generator.random((num_tokens, shape.num_moe_layers, shape.num_experts)), axis=2)
    return order[:, :, : shape.top_k].astype(np.uint16)


def random_plan(
    seed: int,
    devices: Sequence[PlanningDevice] = DEVICES,
    *,
    replica_chance: float = 0.0,
    shape: ModelShape = SHAPE,
) -> Plan:
    """Every expert on one device by lot, and on each other one with `replica_chance`."""
    generator = np.random.default_rng(seed)
    size = (shape.num_moe_layers, shape.num_experts)
    masks = generator.random((len(devices), *size)) < replica_chance
    home = generator.integers(0, len(devices), size)
    masks[home, *np.indices(size)] = True
    return plan_of(HolderTable.from_masks(masks), devices, shape)


def plan_of(
    table: HolderTable, devices: Sequence[PlanningDevice] = DEVICES, shape: ModelShape = SHAPE
) -> Plan:
    size = shape.expert_bytes(16)
    return Plan(
        model=shape.name,
        fingerprint=shape.fingerprint,
        layers=like_layers(shape.moe_layers, "bfloat16", size),
        dtype="bfloat16",
        tiers=priced_tiers(PlanningProblem(shape, tuple(devices), size)),
        holder_table=table,
        policy="test",
    )


def system_of(
    plan: Plan,
    devices: Sequence[PlanningDevice] = DEVICES,
    workload: Workload = SINGLE_TOKEN,
    shape: ModelShape = SHAPE,
) -> System:
    return System.build(plan, devices, shape, workload)
