"""Run folders: removed at the end, and those of killed processes by the next one that starts."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.run_folder import LOCK, PREFIX, remove_abandoned, run_folder
from tests.orchestrator.processes import DEADLINE_S, run

HOLD = """
    import signal, sys
    from orchestrator.run_folder import run_folder
    with run_folder(sys.argv[1]) as folder:
        (folder / "ray").mkdir()
        (folder / "ray" / "log").write_text("x")
        (folder / "0.sock").write_text("")
        print(folder, flush=True)
        signal.pause()
"""


@contextmanager
def holder(parent: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process with a run folder below `parent`, until the block ends."""
    with run(HOLD, parent) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.stderr.read() if process.stderr else ""
        try:
            yield process, Path(line.strip())
        finally:
            process.kill()


def test_a_folder_is_private_and_gone_at_the_end(tmp_path: Path) -> None:
    with run_folder(str(tmp_path)) as folder:
        assert folder.parent == tmp_path
        assert folder.stat().st_mode & 0o077 == 0
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_killed_process_is_removed_and_that_of_a_running_one_kept(tmp_path: Path) -> None:
    with holder(tmp_path) as (killed, left), holder(tmp_path) as (_, used):
        killed.send_signal(signal.SIGKILL)
        killed.wait(DEADLINE_S)
        assert (left / "ray" / "log").exists()
        with run_folder(str(tmp_path)) as own:
            assert sorted(tmp_path.iterdir()) == sorted([own, used])
            assert (used / "ray" / "log").exists()


@pytest.mark.parametrize("kind", ["no lock", "other name", "link", "lock is a pipe", "lock is a link"])
def test_what_is_not_provably_an_abandoned_run_folder_is_left_alone(tmp_path: Path, kind: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / LOCK).touch()
    parent = tmp_path / "tmp"
    parent.mkdir()
    folder = parent / ("other" if kind == "other name" else f"{PREFIX}abc")
    if kind == "link":
        folder.symlink_to(elsewhere)
    else:
        folder.mkdir()
        (folder / "notes").write_text("mine")
    if kind == "other name":
        (folder / LOCK).touch()
    elif kind == "lock is a pipe":
        os.mkfifo(folder / LOCK)
    elif kind == "lock is a link":
        (folder / LOCK).symlink_to(elsewhere / LOCK)
    remove_abandoned(str(parent))
    assert folder.exists()
    assert (elsewhere / LOCK).exists()
    assert kind == "link" or (folder / "notes").exists()


def test_a_link_inside_is_removed_and_not_followed(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / f"{PREFIX}abc"
    outside.mkdir()
    (outside / "kept").touch()
    folder.mkdir()
    (folder / LOCK).touch()
    (folder / "ray").symlink_to(outside)
    remove_abandoned(str(tmp_path))
    assert not folder.exists()
    assert (outside / "kept").exists()


def test_a_parent_that_is_not_there_has_nothing_to_remove(tmp_path: Path) -> None:
    remove_abandoned(str(tmp_path / "nothing"))
