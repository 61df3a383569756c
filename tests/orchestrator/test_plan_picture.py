"""The picture of a plan is written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cli.plan_picture import device_groups, write_heatmap
from placement.answers.planner import make_plan
from placement.errors import InputError
from placement.given.stats import RoutingStats
from placement.given.traces import GENERAL, SyntheticRouter
from tests.placement.boxes import device
from tests.placement.shapes import small_shape

SHAPE = small_shape()
SIZE = SHAPE.expert_bytes(16)
STATS = RoutingStats.from_trace(SHAPE, SyntheticRouter(SHAPE).trace(GENERAL, 300), "synthetic")
DEVICES = (device("head", 20, SIZE), device("attic", 20, SIZE))
PLAN = make_plan(SHAPE, DEVICES, STATS, "hottest-first", dtype="bfloat16", expert_bytes=SIZE)


@pytest.mark.parametrize(("name", "begins"), [("plan.png", b"\x89PNG"), ("plan.svg", b"<?xml")])
def test_it_is_a_picture_of_the_kind_its_name_says(tmp_path: Path, name: str, begins: bytes) -> None:
    write_heatmap(PLAN, tmp_path / name, STATS)
    assert (tmp_path / name).read_bytes().startswith(begins)
    write_heatmap(PLAN, tmp_path / "again.svg")
    write_heatmap(PLAN, tmp_path / "twice.svg")
    assert (tmp_path / "again.svg").read_bytes() == (tmp_path / "twice.svg").read_bytes()


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ends in \.png or \.svg"):
        write_heatmap(PLAN, tmp_path / "plan.gif")
    assert not list(tmp_path.iterdir())


def test_few_devices_have_a_colour_each_and_many_one_for_each_kind() -> None:
    assert device_groups(PLAN)[0] == ["head (20)", "attic (10)"]
    rooms = [4] * 6 + [3] * 4
    many = [device(f"d{index}", room, SIZE) for index, room in enumerate(rooms)]
    plan = make_plan(SHAPE, many, STATS, "uniform", dtype="bfloat16", expert_bytes=SIZE)
    labels, group_of = device_groups(plan)
    held = plan.experts_per_tier()
    assert group_of.tolist() == [0] * 6 + [1] * 4
    assert [label.rpartition(" ")[2] for label in labels] == [f"({held[:6].sum()})", f"({held[6:].sum()})"]
    assert labels[1].startswith("4 x ")


def test_more_kinds_than_colours_leave_a_rest() -> None:
    many = [device(f"d{index}", room, SIZE) for index, room in enumerate(range(2, 12))]
    plan = make_plan(SHAPE, many, STATS, "uniform", dtype="bfloat16", expert_bytes=SIZE)
    labels, group_of = device_groups(plan)
    assert len(labels) == 8
    assert labels[-1].startswith("3 others (")
    assert (group_of == 7).sum() == 3
