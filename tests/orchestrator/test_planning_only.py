"""Which of the catalogue this release computes on, and who is told so before anything is bought."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from orchestrator.cli.planning_only import is_planning_only, planning_only_note, what_runs, why_planning_only
from placement.answers.planner import as_plan
from placement.given.cluster_file import load_cluster
from placement.given.cluster_spec import ClusterSpec
from placement.given.problem import problem_for
from placement.hardware.catalogue import packaged_catalogue
from placement.holders import HolderTable
from tests.orchestrator.command_line import Potluck, document
from tests.placement.shapes import small_shape

ENTRIES = packaged_catalogue().entries
PLANNING_ONLY = {name for name, entry in ENTRIES.items() if is_planning_only(entry)}
RAM: dict[str, Any] = {"use": "ddr4-3200-dual", "memory_bytes": "64GB"}
TINY = Path(__file__).parents[2] / "models" / "potluck-tiny"


def cluster(tmp_path: Path, *hardware: object) -> ClusterSpec:
    path = tmp_path / "boxes.yaml"
    path.write_text(yaml.safe_dump({"head": "den", "nodes": [{"name": "den", "hardware": list(hardware)}]}))
    return load_cluster(path)


def test_gpus_of_other_makers_and_cards_before_turing_are_for_planning() -> None:
    others = {"rx-7900-xtx", "rx-9070-xt", "mi50-32gb", "mi60", "strix-halo"}
    apples = {name for name, entry in ENTRIES.items() if entry.hardware_class.startswith("apple")}
    assert {"p40", "v100-32gb"} | others | apples == PLANNING_ONLY


def test_of_every_nvidia_gpu_it_is_known_which_generation_it_is() -> None:
    for name, entry in ENTRIES.items():
        by_cuda = entry.kind == "vram" and entry.torch_device is None
        assert (entry.compute_capability is not None) == by_cuda, name


def test_what_does_run_is_said_of_every_such_entry() -> None:
    for name, entry in ENTRIES.items():
        sentence = what_runs(entry)
        assert (sentence or "").startswith("Planning only: ") == (name in PLANNING_ONLY), name
    assert "compute capability 6.1" in str(what_runs(ENTRIES["p40"]))
    for name in ("strix-halo", "dgx-spark"):
        assert "The CPU of such a box runs, with the memory typed as `ram`" in str(what_runs(ENTRIES[name]))
    assert what_runs(ENTRIES["rtx-4090"]) is None


@pytest.mark.parametrize(
    ("hardware", "expected"),
    [
        (["v100-32gb", RAM], "den/v100-32gb: v100-32gb has compute capability 7.0, .* 7.5"),
        ([RAM, "p40"], None),
        (["rtx-3060-12gb", RAM], None),
        (["rx-7900-xtx", RAM], "on device 'hip'"),
    ],
)
def test_a_plan_that_uses_a_card_of_before_turing_says_so(
    hardware: list[Any], expected: str | None, tmp_path: Path
) -> None:
    shape, boxes = small_shape(), cluster(tmp_path, *hardware)
    problem = problem_for(shape, boxes, shape.expert_bytes(16.0))
    all_on_the_first = np.zeros((len(shape.moe_layers), shape.num_experts), dtype=np.int16)
    made = as_plan(problem, HolderTable.from_single(all_on_the_first), "uniform", "bfloat16")
    why = why_planning_only(made, boxes)
    if expected is None:
        assert why is None
    else:
        assert why is not None
        assert re.search(expected, why), why


def test_devices_are_named_once_and_few_of_them(tmp_path: Path) -> None:
    boxes = cluster(tmp_path, "p40", "rtx-3090", RAM, "rx-7900-xtx")
    note = planning_only_note([boxes, boxes])
    assert note is not None
    assert note.startswith(
        "for planning and simulation only: den/p40, den/rx-7900-xtx; this release computes"
    )
    assert "den/mi60-2 and 1 more;" in str(
        planning_only_note([cluster(tmp_path, "p40", "p40", *["mi60"] * 3)])
    )
    assert planning_only_note([cluster(tmp_path, "rtx-3090", RAM)]) is None


def test_the_list_marks_them_and_so_does_the_document(potluck: Potluck) -> None:
    code, out, err = potluck("hardware")
    assert code == 0
    marked = {line.split()[0] for line in out.splitlines() if "†" in line}
    assert marked == PLANNING_ONLY
    assert "† planning only" in err
    listed = document(potluck("hardware", "--json"))["hardware"]
    assert {entry["name"] for entry in listed if entry["planning_only"]} == PLANNING_ONLY


def test_plan_whatif_and_study_say_it_in_one_line(potluck: Potluck, tmp_path: Path) -> None:
    cluster(tmp_path, "p40", RAM)
    given = (tmp_path / "boxes.yaml", "--model", TINY, "--policy", "uniform")
    code, _, err = potluck("plan", *given, "--no-predict")
    assert code == 0, err
    assert "for planning and simulation only: den/p40: p40 has" in " ".join(err.split())
    code, _, err = potluck("whatif", *given)
    assert code == 0, err
    assert "for planning and simulation only: den/p40;" in " ".join(err.split())
    study = tmp_path / "study.yaml"
    axes: dict[str, Any] = {"name": "one", "model": str(TINY), "policies": ["uniform"], "quants": ["q4"]}
    axes |= {"clusters": ["boxes.yaml"], "traces": [{"name": "general", "domain": "general", "tokens": 64}]}
    study.write_text(yaml.safe_dump(axes))
    code, _, err = potluck("study", study, "--processes", 1)
    assert code == 0, err
    assert "for planning and simulation only: den/p40;" in " ".join(err.split())
