"""Seconds of actions, of threads and of processes, and their mean."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean


def timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def mean(seconds: Sequence[float]) -> float:
    """Without the tenth at either end, which other programs make."""
    left_out = len(seconds) // 10
    return fmean(sorted(seconds)[left_out : len(seconds) - left_out])


def cpu_s(pid: int) -> float:
    """CPU time of all threads of a process, to the nanosecond (Linux's schedstat)."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) * 1e-9
