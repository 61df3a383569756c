"""What runs leave on a box whose head was killed: their folders, once nothing in them runs any more."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path

from orchestrator.launch.kept_worker import LOCK, running_process

RUNS = "~/.potluck"
"""Where `potluck generate --ray-address` has a folder for each run on a box."""
_RUN = re.compile(r"run-[0-9a-f]{12}")
# Younger folders may be those of a run that begins just now.
YOUNG_S = 60.0


def remove_left_runs(folder: Path, young_s: float = YOUNG_S) -> list[str]:
    """Remove the folders of runs in which no worker runs and none is kept; their names.

    Args:
        folder: with all that Potluck has on this box.
        young_s: folders that changed within this time stay.
    """
    removed = []
    with suppress(OSError):
        for run in sorted(folder.iterdir()):
            if _RUN.fullmatch(run.name) and _is_left(run, young_s):
                shutil.rmtree(run, ignore_errors=True)
                removed.append(run.name)
    return removed


def _is_left(run: Path, young_s: float) -> bool:
    try:
        if time.time() - run.stat().st_mtime < young_s:
            return False
        return all(_has_ended(worker) for worker in run.glob("*/worker"))
    except OSError:
        return False


def _has_ended(worker: Path) -> bool:
    if running_process(worker) is not None:
        return False
    try:
        handle = os.open(worker / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True
