"""The examples in docs/formats.md are what the code accepts."""

from __future__ import annotations

import re
from pathlib import Path

from placement.given.cluster_file import load_cluster
from placement.plan_file import read_plan

DOCUMENT = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")


def example(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)
    assert found
    return found[1]


def test_the_fingerprint_example_runs() -> None:
    exec(example("python"), {})


def test_the_plan_example_loads(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(example("json"))
    plan = read_plan(path)
    plan.check_fits()
    assert plan.experts_of("attic-ram") == {1: (2,), 2: (0, 1, 3)}


def test_the_cluster_example_loads(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(example("yaml"))
    assert [node.name for node in load_cluster(path).nodes] == ["study", "attic"]
