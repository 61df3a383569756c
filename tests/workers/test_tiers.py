"""What a plan leaves free of a device, and who may use it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from orchestrator.cli.even_plan import even_plan
from placement.holders import HolderTable
from placement.plan import Plan
from tests.tiny_checkpoint import write_random_checkpoint
from workers.model_config import Step35Config
from workers.tiers import tiers_of


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Two devices of one box, half of the experts on each, with 1,000 bytes left."""
    directory = write_random_checkpoint(tmp_path_factory.mktemp("model"), seed=2)
    plan = even_plan(Step35Config.load(directory).shape("model"), 2, "float32")
    tiers = (replace(tier, worker="den", budget_bytes=tier.budget_bytes + 1000) for tier in plan.tiers)
    return replace(plan, tiers=tuple(tiers))


def with_kinds(plan: Plan, *kinds: str) -> Plan:
    return replace(plan, tiers=tuple(replace(t, kind=k) for t, k in zip(plan.tiers, kinds, strict=True)))


@pytest.mark.parametrize(
    ("kinds", "cache_bytes"),
    [(("vram", "ram"), [1000, 0]), (("vram", "vram"), [0, 0]), (("ram", "ram"), [0, 0])],
)
def test_what_is_left_of_a_card_is_for_experts_of_the_ram_beside_it(
    plan: Plan, kinds: tuple[str, str], cache_bytes: list[int]
) -> None:
    assert [spec.cache_bytes for spec in tiers_of(with_kinds(plan, *kinds), "den")] == cache_bytes


def test_a_card_may_be_all_cache_if_it_has_room_for_an_expert(plan: Plan) -> None:
    in_ram = np.ones_like(plan.holder_table.table)
    emptied = replace(with_kinds(plan, "vram", "ram"), holder_table=HolderTable(in_ram))
    largest = int(plan.expert_bytes.max())

    def caches_of(budget_bytes: int) -> list[tuple[str, int, int]]:
        card = replace(emptied.tiers[0], budget_bytes=budget_bytes)
        specs = tiers_of(replace(emptied, tiers=(card, emptied.tiers[1])), "den")
        return [(spec.kind, spec.num_experts, spec.cache_bytes) for spec in specs]

    ram = ("ram", in_ram.size, 0)
    assert caches_of(largest) == [("vram", 0, largest), ram]
    assert caches_of(largest - 1) == [ram]
