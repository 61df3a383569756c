"""`potluck logs` of a box without a log: one sentence says why."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from orchestrator.cluster.run_state import RunState, write_run_state
from tests.orchestrator.cluster.launcher_document import launcher_document, write_launcher
from tests.orchestrator.command_line import Potluck, document, says

NAME = "test-logs-cli"
"""Of a cluster that nobody has in their home."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Its second box is this machine too, so that no ssh is needed."""
    made = launcher_document() | {"cluster_name": NAME}
    made["provider"]["worker_ips"] = ["127.0.0.1"]
    made["metadata"]["potluck"]["nodes"][1] |= {"address": "127.0.0.1", "venv": sys.prefix}
    return write_launcher(tmp_path, made)


def raised(file: Path, missing: dict[str, str]) -> None:
    """Note that the cluster is up, with a plan that leaves all to the head."""
    folder = file.parent / ".potluck" / NAME
    folder.mkdir(parents=True)
    state = RunState(NAME, "/m", "", "/plan.json", "study", "192.168.1.10:21000", 1.0, (), missing)
    write_run_state(folder, state)


@pytest.mark.parametrize("node", ["study", "attic"])
def test_before_the_cluster_is_up_there_is_none(potluck: Potluck, file: Path, node: str) -> None:
    code, out, err = potluck("logs", file, node)
    assert (code, out) == (0, "")
    assert says(err, f"{node}: no log, because the cluster is not up: `potluck up {file}`")


def test_an_idle_box_has_none_and_is_said_to_be_idle(potluck: Potluck, file: Path) -> None:
    raised(file, {})
    code, out, err = potluck("logs", file, "attic")
    assert (code, out) == (0, "")
    assert says(err, "attic: no log, because it is idle: the plan puts no experts there")
    assert document(potluck("logs", file, "attic", "--json")) == {"node": "attic", "lines": []}


@pytest.mark.parametrize("node", ["study", "attic"])
def test_a_box_that_is_to_work_has_logged_nothing_yet(potluck: Potluck, file: Path, node: str) -> None:
    raised(file, {"attic": "attic (127.0.0.1): unreachable"})
    code, out, err = potluck("logs", file, node)
    assert (code, out) == (0, "")
    assert says(err, f"{node}: nothing is logged there so far: `potluck status {file}`")
