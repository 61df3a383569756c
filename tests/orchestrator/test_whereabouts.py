"""What of a plan lies where is one line, however many boxes it has."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from orchestrator.cli.even_plan import even_plan
from orchestrator.cli.residency import Residency, why_no_cache
from orchestrator.cli.whereabouts import of_experts, of_head_and_experts
from placement.holders import HolderTable
from placement.model_shape import STEP_3_5_FLASH
from placement.plan import Plan, PlannedTier
from placement.residency import ResidencyRule
from placement.units import size

EVEN = even_plan(STEP_3_5_FLASH, 2, "bfloat16")
EXPERT = EVEN.mean_expert_bytes
LAYERS, EXPERTS = STEP_3_5_FLASH.num_moe_layers, STEP_3_5_FLASH.num_experts
ALL = LAYERS * EXPERTS


def tier(name: str, kind: str, room: int, *, worker: str = "head", device: str = "cpu") -> PlannedTier:
    return PlannedTier(name, "box", device, kind, room * EXPERT, worker=worker)


VRAM = tier("head", "vram", 1000, device="cuda:1")
RAM = tier("head-ram", "ram", ALL)


def plan_of(*tiers: PlannedTier, counts: tuple[int, ...]) -> Plan:
    """As many experts on each tier."""
    table = np.repeat(np.arange(len(counts), dtype=np.int16), counts).reshape(LAYERS, EXPERTS)
    return replace(EVEN, tiers=tiers, holder_table=HolderTable.from_single(table))


def counted(num_experts: int) -> str:
    return f"{num_experts:,} ({size(num_experts * EXPERT)})"


def test_head_and_experts_are_told_by_their_memory() -> None:
    plan = plan_of(VRAM, RAM, tier("den", "ram", ALL, worker="den"), counts=(1000, ALL - 3000, 2000))
    line = of_head_and_experts(plan, "cuda:1", ResidencyRule.lfu)
    assert line == (
        f"{EVEN.model}: the head on cuda:1; experts: {counted(1000)} in VRAM of cuda:1, "
        f"{counted(ALL - 3000)} in RAM, {counted(2000)} in RAM of den"
    )
    assert of_head_and_experts(EVEN, "cpu", ResidencyRule.lfu) == (
        f"{EVEN.model}: the head on the CPU; experts: {counted(ALL)} in RAM of 2 workers"
    )


@pytest.mark.parametrize("rule", ResidencyRule)
def test_memory_that_only_keeps_is_a_cache(rule: ResidencyRule) -> None:
    told = of_experts(plan_of(VRAM, RAM, counts=(0, ALL)), rule)
    assert (f"a cache of {size(1000 * EXPERT)} in VRAM of cuda:1" in told) == (
        rule is not ResidencyRule.fixed
    )
    disk = tier("den-disk", "disk", ALL, worker="den")
    told = of_experts(plan_of(tier("den", "ram", 5, worker="den"), disk, counts=(0, ALL)), rule)
    assert told == f"experts: a cache of {size(5 * EXPERT)} in RAM of den, {counted(ALL)} on disk of den"


def test_a_cache_that_the_plan_leaves_no_room_for_is_told() -> None:
    full, free = (plan_of(VRAM, RAM, counts=(count, ALL - count)) for count in (1000, 999))
    for asked in Residency:
        assert why_no_cache(asked, free) == ""
        is_cache = asked in (Residency.lru, Residency.lfu)
        assert (f"--residency {asked}: nothing is kept" in why_no_cache(asked, full)) == is_cache
