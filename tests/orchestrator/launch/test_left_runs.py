"""Folders of runs whose head was killed go once nothing in them runs; others stay."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import psutil
import pytest

from orchestrator.launch.kept_worker import LOCK, PROCESS
from orchestrator.launch.left_runs import remove_left_runs


def made(folder: Path, name: str, pid: int = 0, began: float = 0.0) -> Path:
    worker = folder / name / "den" / "worker"
    worker.mkdir(parents=True)
    (worker / LOCK).touch()
    (worker / PROCESS).write_text(json.dumps({"pid": pid, "began": began}))
    return worker


def test_only_runs_in_which_nothing_runs_are_removed(tmp_path: Path) -> None:
    own = psutil.Process()
    made(tmp_path, "run-000000000001")
    made(tmp_path, "run-000000000002", own.pid, own.create_time())
    kept = made(tmp_path, "run-000000000003")
    made(tmp_path, "home")
    made(tmp_path, "run-of-mine")
    handle = os.open(kept / LOCK, os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)
        assert remove_left_runs(tmp_path, 0.0) == ["run-000000000001"]
    finally:
        os.close(handle)
    assert remove_left_runs(tmp_path, 0.0) == ["run-000000000003"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "run-000000000002", "run-of-mine"]


@pytest.mark.parametrize("name", ["run-000000000001", "nothing"])
def test_a_young_one_stays_and_a_folder_that_is_not_there_is_no_error(tmp_path: Path, name: str) -> None:
    made(tmp_path, "run-000000000001")
    assert remove_left_runs(tmp_path / name) == []
    assert remove_left_runs(tmp_path) == []
