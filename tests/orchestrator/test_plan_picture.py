"""The picture of a plan is written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.plan_picture import write_heatmap
from placement.errors import InputError
from placement.planner import make_plan
from placement.stats import RoutingStats
from placement.traces import GENERAL, SyntheticRouter
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
