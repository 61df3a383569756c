"""What runs is read back as it was written; everything else is one clear line."""

from __future__ import annotations

import json
import stat
from dataclasses import asdict
from pathlib import Path

import pytest

from orchestrator.cluster.run_state import (
    RUN,
    RunningWorker,
    RunState,
    RunStateError,
    read_run_state,
    write_run_state,
)
from placement.errors import KeyFilesError

WORKER = RunningWorker(
    name="den-ram",
    node="den",
    address="10.0.0.2",
    endpoint="tcp://10.0.0.2:4000",
    pulse_endpoint="tcp://10.0.0.2:4001",
    public_key="k" * 40,
    pid=7,
    instance=2**64 - 1,
    num_experts=3,
    held_bytes=12,
    since=1.5,
)
STATE = RunState(
    cluster="home",
    model_path="/models/m",
    identity="ab",
    plan="/x/plan.json",
    head="study",
    ray_address="10.0.0.1:6379",
    started=1.0,
    workers=(WORKER,),
    missing={"attic": "ssh refused"},
)


def test_it_is_read_back_and_is_for_its_user_alone(tmp_path: Path) -> None:
    write_run_state(tmp_path, STATE)
    assert read_run_state(tmp_path) == STATE
    assert stat.S_IMODE((tmp_path / RUN).stat().st_mode) == 0o600
    assert STATE.worker("den-ram") == WORKER
    assert STATE.worker("attic-ram") is None


def test_where_nothing_runs_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RunStateError, match="expected a running cluster, found none: run `potluck up`"):
        read_run_state(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"workers": 3},
        {"surprise": 1},
        {"workers": [{"name": "x"}]},
        {"plan": 5},
        {"started": "x"},
        {"started": 10**400},
        {"head": "a\nb"},
        {"missing": {"attic": 1}},
        {"workers": [asdict(WORKER) | {"public_key": None}]},
        {"workers": [asdict(WORKER) | {"public_key": "~" * 40}]},
        {"workers": [asdict(WORKER) | {"pulse_endpoint": "x"}]},
        {"workers": [asdict(WORKER) | {"since": True}]},
    ],
)
def test_a_file_of_another_form_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    write_run_state(tmp_path, STATE)
    path = tmp_path / RUN
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RunStateError, match=r"run\.json: damaged, or written by another release"):
        read_run_state(tmp_path)


def test_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / RUN).write_text("{")
    with pytest.raises(RunStateError, match="not JSON"):
        read_run_state(tmp_path)


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyFilesError, match="cannot write"):
        write_run_state(tmp_path / "nowhere", STATE)
