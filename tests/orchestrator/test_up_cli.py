"""`potluck up`: a file that it refuses, and what it says of where the plan's experts are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from orchestrator.cli.up import placed
from orchestrator.cluster.launcher_text import Draft, launcher_text
from placement.holders import HolderTable
from placement.plan import LOCAL_WORKER, Plan, PlannedTier
from tests.orchestrator.command_line import Potluck, says
from tests.orchestrator.random_plan import random_plan
from tests.placement.shapes import small_shape

SHAPE = small_shape()
RAM = PlannedTier(LOCAL_WORKER, "study", "cpu", "ram", 1)
DISK = PlannedTier("study-disk", "study", "cpu", "disk", 1, worker=LOCAL_WORKER)
OTHER = PlannedTier("den-ram", "den", "cpu", "ram", 1, worker="den")
OTHER_DISK = PlannedTier("den-disk", "den", "cpu", "disk", 1, worker="den")


def plan_of(*tiers: tuple[PlannedTier, slice]) -> Plan:
    """Each tier with the experts of a slice, of every layer."""
    plan = random_plan(SHAPE, 0, seed=0)
    masks = np.zeros((len(tiers), SHAPE.num_moe_layers, SHAPE.num_experts), np.bool_)
    for mask, (_, experts) in zip(masks, tiers, strict=True):
        mask[:, experts] = True
    return replace(plan, tiers=tuple(tier for tier, _ in tiers), holder_table=HolderTable.from_masks(masks))


def test_a_plan_for_the_head_alone_says_how_many_of_its_experts_are_on_disk() -> None:
    plan = plan_of((RAM, slice(0, 2)), (DISK, slice(2, None)), (OTHER, slice(0)))
    on_disk, alone = placed(plan, "study")
    num_disk, num_all = ((SHAPE.num_experts - n) * SHAPE.num_moe_layers for n in (2, 0))
    assert on_disk == f"study: {num_disk:,} of its {num_all:,} experts are on its disk"
    assert "all experts are on study" in alone


def test_every_box_with_experts_on_disk_is_named_and_what_is_in_its_memory_too_is_not_counted() -> None:
    plan = plan_of((RAM, slice(0, 2)), (OTHER, slice(2, None)), (OTHER_DISK, slice(0, 3)))
    (on_disk,) = placed(plan, None)
    layers = SHAPE.num_moe_layers
    assert on_disk == f"den: {2 * layers:,} of its {SHAPE.num_experts * layers:,} experts are on its disk"


def test_nothing_is_said_of_experts_in_memory() -> None:
    plan = plan_of((RAM, slice(0, 2)), (DISK, slice(0)), (OTHER, slice(2, None)))
    assert list(placed(plan, None)) == []


def test_a_node_that_was_renamed_in_one_part_of_the_file_is_one_line(
    potluck: Potluck, tmp_path: Path
) -> None:
    nodes = {"study": "192.168.1.10", "attic": "192.168.1.11"}
    text = launcher_text(Draft("home", "study", nodes, "anna", "~/.ssh/id"))
    file = tmp_path / "home.yaml"
    file.write_text(text.replace("- name: attic", "- name: loft"))
    code, out, err = potluck("up", file, "--model", tmp_path)
    assert (code, out) == (2, "")
    assert says(err, "home.yaml: head_start_ray_commands: expected 192.168.1.11=loft … found … attic")
