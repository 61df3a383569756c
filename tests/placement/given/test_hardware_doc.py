"""Every machine written down in docs/hardware.md is a cluster file that can be read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from placement.given.cluster_file import load_cluster
from placement.given.head_memory import head_memory_bytes
from placement.given.problem import planning_devices
from placement.hardware.catalogue import packaged_catalogue
from placement.model_shape import STEP_3_5_FLASH
from placement.workload import usual_workload

PAGE = (Path(__file__).parents[3] / "docs" / "hardware.md").read_text(encoding="utf-8")
EXAMPLES = {
    f"{title}, {number}" if number else title: written
    for title, text in re.findall(r"(?m)^##+ (.*)\n((?:(?!##).*\n)*)", PAGE)
    for number, written in enumerate(re.findall(r"```yaml\n(.*?)```", text, re.DOTALL))
}
UNIFIED = {
    name
    for name, entry in packaged_catalogue().entries.items()
    if entry.hardware_class.startswith(("apple", "unified-pc"))
}


def test_the_machines_people_ask_about_are_there() -> None:
    assert len(EXAMPLES) == PAGE.count("```yaml")
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
        kinds = [device.kind for device in node.devices]
        assert not {device.name for device in node.devices} & UNIFIED or kinds == ["vram"]


def test_names_and_typed_figures_of_the_workstation_are_about_the_same(tmp_path: Path) -> None:
    boxes = []
    for title in (title for title in EXAMPLES if title.startswith("Workstation")):
        path = tmp_path / "cluster.yaml"
        path.write_text(EXAMPLES[title])
        boxes.append(load_cluster(path).nodes[0].devices)
    for named, typed in zip(*boxes, strict=True):
        assert named.kind == typed.kind
        assert 0.6 < named.bandwidth_bytes_per_s / typed.bandwidth_bytes_per_s < 1.6
