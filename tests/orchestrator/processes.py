"""Programs in processes of their own, and waiting for what they do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
DEADLINE_S = 120.0
MARK = "POTLUCK_TEST"
"""Environment variable by which a test knows the processes it started, among other people's Ray."""


def wait_until(condition: Callable[[], bool], timeout_s: float = DEADLINE_S) -> None:
    """Raises AssertionError when the condition does not come true in time."""
    deadline, pause_s = time.monotonic() + timeout_s, 0.001
    while not condition():
        assert time.monotonic() < deadline, f"not so after {timeout_s:g} s"
        time.sleep(pause_s)
        # Some conditions look at every process of the machine: those that take long are asked seldom.
        pause_s = min(0.05, 1.5 * pause_s)


def start(*arguments: object, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Python with these arguments, in a process group of its own, heeding every signal."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_interrupts,
    )


def run(program: str, *arguments: object, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return start("-c", textwrap.dedent(program), *arguments, environment=environment)


def heed_interrupts() -> None:
    """A shell starts background jobs with SIGINT ignored, and their children inherit that."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def is_running(pid: int) -> bool:
    """Whether there is such a process that has not ended."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def marked(value: str) -> list[int]:
    """Processes that were started with this value of MARK, or by such a process."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == value and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found
