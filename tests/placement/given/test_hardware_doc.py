"""Every machine written down in docs/hardware.md is a cluster file that can be read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from placement.given.cluster_file import load_cluster
from placement.given.head_memory import head_memory_bytes
from placement.given.problem import planning_devices
from placement.model_shape import STEP_3_5_FLASH
from placement.workload import usual_workload

PAGE = (Path(__file__).parents[3] / "docs" / "hardware.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"### (.*?)\n.*?```yaml\n(.*?)```", PAGE, re.DOTALL))


def test_the_machines_people_ask_about_are_there() -> None:
    for machine in ("Mac", "Strix Halo", "DGX Spark", "Dual-socket", "laptop"):
        assert any(machine in title for title in EXAMPLES), machine


@pytest.mark.parametrize("title", EXAMPLES)
def test_an_example_is_a_cluster_whose_head_fits(title: str, tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(EXAMPLES[title])
    cluster = load_cluster(path)
    needed = head_memory_bytes(STEP_3_5_FLASH, usual_workload("q4"))
    assert planning_devices(cluster, needed)[0].tier.budget_bytes > 0
    # Unified memory is written down once.
    for node in cluster.nodes:
        kinds = [device.kind for device in node.devices if device.name == "unified"]
        assert kinds in ([], ["vram"])
