"""A worker's log: whatever the process says, in two files of bounded size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.orchestrator.processes import DEADLINE_S, ROOT
from workers.log_file import MOST_BYTES

TALKS = """
import logging, os, sys
from workers.log_file import log_to
log_to(sys.argv[1])
log = logging.getLogger("x")
for number in range(int(sys.argv[2])):
    log.info("%d %s", number, "y" * 1000)
os.write(2, b"straight to standard error\\n")
"""


def talk(path: Path, lines: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", TALKS, str(path), str(lines)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=True)


def test_messages_and_standard_error_go_to_files_that_do_not_grow(tmp_path: Path) -> None:
    path = tmp_path / "w.log"
    assert talk(path, 4000).stderr == ""
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["w.log", "w.log.1"]
    assert all(file.stat().st_size <= MOST_BYTES + 100 and not file.stat().st_mode & 0o077 for file in files)
    lines = path.read_text().splitlines()
    assert lines[-1] == "straight to standard error"
    assert " INFO 3999 y" in lines[-2]


def test_a_log_that_cannot_be_written_is_said_once_and_messages_go_on(tmp_path: Path) -> None:
    path = tmp_path / "no such folder" / "w.log"
    said = talk(path, 1).stderr.splitlines()
    assert said[0] == f"{path}: No such file or directory: messages go to standard error"
    assert " INFO 0 y" in said[1]
