"""Each file in examples/ is one to start from: for Potluck, for Ray, and on paper."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from orchestrator.cluster.launcher_file import load_launcher
from orchestrator.cluster.launcher_text import Draft, launcher_text
from orchestrator.runnable import check_runnable
from placement.answers.planner import make_plan
from placement.errors import PlanError
from placement.given.cluster_file import load_known_cluster
from placement.model_shape import STEP_3_5_FLASH
from placement.plan import Plan
from placement.weight_format import planned_format
from tests.orchestrator.test_init_cli import check_by_ray

FOLDER = Path(__file__).parents[2] / "examples"
FILES = sorted(FOLDER.glob("*.yaml"))
RUN = {
    "two-laptops.yaml",
    "eight-mixed-boxes.yaml",
    "two-strix-halo.yaml",
    "gpu-and-two-cpu-boxes.yaml",
}


def planned(path: Path) -> Plan:
    size = STEP_3_5_FLASH.expert_bytes(planned_format("q4").bits)
    boxes = load_known_cluster(path)
    return make_plan(STEP_3_5_FLASH, boxes, policy="uniform", dtype="q4", expert_bytes=size)


def test_the_clusters_people_ask_about_are_there() -> None:
    assert {path.name for path in FILES} == RUN | {"mac-and-pc.yaml"}
    page = (FOLDER / "README.md").read_text()
    assert all(f"[{path.name}]({path.name})" in page for path in FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_example_is_what_init_writes_with_figures(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = load_launcher(path)
    assert launcher.notes == ()
    draft = Draft(launcher.name, launcher.head.name, launcher.addresses, "potluck", "~/.ssh/id_ed25519")
    ours, theirs = yaml.safe_load(launcher_text(draft)), yaml.safe_load(path.read_text())
    check_by_ray(path, monkeypatch)
    ours.pop("metadata")
    theirs.pop("metadata")
    assert ours == theirs


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_example_holds_the_model_and_says_whether_it_runs(path: Path) -> None:
    plan = planned(path)
    runs = True
    try:
        check_runnable(plan)
    except PlanError:
        runs = False
    assert runs == (path.name in RUN)


def test_the_file_with_a_card_runs_without_its_line(tmp_path: Path) -> None:
    lines = (FOLDER / "gpu-and-two-cpu-boxes.yaml").read_text().splitlines()
    (at,) = [index for index, line in enumerate(lines) if "- {name: gpu" in line]
    # A mapping that goes on in a second line is one device.
    last = next(index for index in range(at, len(lines)) if lines[index].rstrip().endswith("}"))
    path = tmp_path / "cluster.yaml"
    path.write_text("\n".join(lines[:at] + lines[last + 1 :]))
    check_runnable(planned(path))


def test_no_cluster_of_the_examples_meets_another() -> None:
    launchers = [load_launcher(path) for path in FILES]
    assert len({launcher.name for launcher in launchers}) == len(FILES)
    assert len({launcher.ray_port for launcher in launchers}) == len(FILES)
