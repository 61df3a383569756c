"""Each process that is asked for is its asker's own."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.forks.forks import Forks
from tests.orchestrator.processes import is_running, wait_until
from workers.spec import WorkerSpec


def test_the_end_of_a_process_that_nobody_waits_for_is_not_told_to_another(
    forks: Forks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WorkerSpec, "to_json", lambda _: "a line")
    sleeping = ["-c", "import time; time.sleep(600)"]
    left_alone = forks.start_detached(sleeping, given="", output=tmp_path / "out", log=tmp_path / "log")
    # Its connection is closed by now, and this one has the next free number, which is the same.
    with forks.spawn(object.__new__(WorkerSpec), module="tests.forks.waits") as asked:
        os.kill(left_alone, signal.SIGKILL)
        wait_until(lambda: not is_running(left_alone))
        assert asked.poll() is None
        asked.kill()
        assert asked.wait(60) == -signal.SIGKILL
