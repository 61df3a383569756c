"""Processes that outlive who started them: found again by what was noted of them, and ended."""

from __future__ import annotations

import signal
from contextlib import suppress

import psutil

END_TIMEOUT_S = 5.0


def find_process(pid: object, began: object) -> psutil.Process | None:
    """The process of this pid, if it began then (in seconds since 1970) and runs.

    Both are as a file has them: None where they are no numbers of a process.
    """
    if not isinstance(pid, int) or not isinstance(began, int | float):
        return None
    try:
        process = psutil.Process(pid)
        # Pids are used again.
        is_it = abs(process.create_time() - began) < 1.0
    except (psutil.NoSuchProcess, ValueError, OverflowError):
        return None
    return process if is_it and is_running(process) else None


def is_running(process: psutil.Process) -> bool:
    """Whether it has not ended, although nobody may have waited for it yet."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def end_process(process: psutil.Process) -> None:
    """Ask it to end, then make it."""
    with suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGTERM)
        # One that sleeps would not hear it.
        process.send_signal(signal.SIGCONT)
        _, alive = psutil.wait_procs([process], timeout=END_TIMEOUT_S)
        for each in alive:
            each.kill()
        psutil.wait_procs(alive, timeout=END_TIMEOUT_S)
