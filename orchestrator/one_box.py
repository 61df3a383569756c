"""A model in one process: what goes where, decided by what the machine has free."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from orchestrator.run_memory import Demand, expert_bytes, head_needs
from placement.head_split import HeadSplit
from placement.holders import HolderTable
from placement.model_shape import ModelShape
from placement.plan import LOCAL_WORKER, Plan, PlannedLayer, PlannedTier, planned_layers
from placement.residency import CacheStart
from placement.units import size
from workers.formats.open_model import OpenModel, kept_forms
from workers.memory.budget import Need, check_memory
from workers.memory.free import FreeMemory
from workers.tiers import least_cache_bytes

DISK = f"{LOCAL_WORKER}-disk"
ADVICE = "take a smaller context or a file in fewer bits, or share the model with other boxes (potluck plan)"
"""Where one box is too small."""


@dataclass(frozen=True, slots=True)
class OneBox:
    """A plan for this process alone, and one line that says what went where and why.

    Attributes:
        split: what of a head on a card stays on the CPU; None where nothing but the embedding does.
        step_s: predicted for a decode step; None where nobody measured this machine.
        is_most: whether a cache that `step_s` does not count makes steps faster.
        cache: how cards begin to keep experts of RAM; None where there is no card.
        no_vram: why nothing goes to a card that was free to use; "" where something does, or none was.
    """

    plan: Plan
    reason: str
    split: HeadSplit | None = None
    step_s: float | None = None
    is_most: bool = False
    cache: CacheStart | None = None
    no_vram: str = ""


def one_box_plan(model: OpenModel, dtype: str, *, cache_bytes: int = 0) -> Plan:
    """All experts in the head's own process: in memory, or on its disk with a cache of `cache_bytes`."""
    shape = model.shape
    layers = planned_layers(shape, kept_forms(model.checkpoint, model.config, dtype))
    all_bytes = shape.num_experts * sum(layer.expert_bytes for layer in layers)
    memory = PlannedTier(LOCAL_WORKER, "this-machine", "cpu", "ram", cache_bytes or all_bytes)
    disk = PlannedTier(DISK, "this-machine", "cpu", "disk", all_bytes, worker=LOCAL_WORKER)
    return _plan(shape, layers, dtype, (memory, disk) if cache_bytes else (memory,))


def _plan(
    shape: ModelShape, layers: tuple[PlannedLayer, ...], dtype: str, tiers: tuple[PlannedTier, ...]
) -> Plan:
    """All experts on the last of the tiers."""
    holders = np.full((shape.num_moe_layers, shape.num_experts), len(tiers) - 1, np.int16)
    return Plan(
        shape.name,
        shape.fingerprint,
        layers,
        dtype,
        tiers,
        HolderTable.from_single(holders),
        policy="one box",
    )


def plan_here(model: OpenModel, dtype: str, demand: Demand, free: FreeMemory) -> OneBox:
    """All in memory where that fits, else the experts on disk, with a cache as large as what is left.

    No expert is tied to memory: the cache keeps those that are asked for most, and does better than a fixed
    choice that knows nothing of the text (docs/memory.md).

    Raises:
        PlanDoesNotFit: not even the head and the smallest cache fit.
    """
    shape = model.shape
    head = head_needs(model.contents, shape, dtype, demand)
    head_bytes = sum(need.num_bytes for need in head)
    of_layer = expert_bytes(model.contents, dtype)
    all_bytes = shape.num_experts * sum(of_layer.values())
    experts = f"{shape.num_routed_experts:,} experts ({size(all_bytes)})"
    head_part = f"the head (weights, KV cache and activations: {size(head_bytes)})"
    room = free.usable_bytes - head_bytes
    if all_bytes <= room:
        reason = f"{shape.name} is mapped into this process: {head_part} and {experts} fit: {free.told}"
        return OneBox(one_box_plan(model, dtype), reason)
    least = least_cache_bytes(shape.num_routed_experts, max(of_layer.values(), default=0))
    check_memory(
        [*head, Need("the smallest cache of experts", least)],
        free,
        where=shape.name,
        advice=ADVICE,
    )
    reason = (
        f"{shape.name} does not fit: {free.told}; {head_part} is in memory, {experts} stay on disk, and a "
        f"cache in memory holds {size(room)} of them, {100 * room / all_bytes:.0f}%"
    )
    return OneBox(one_box_plan(model, dtype, cache_bytes=room), reason, is_most=True)
