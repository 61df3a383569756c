"""How much of the cores' time other programs take while something is measured."""

from __future__ import annotations

import os
import time
from contextlib import suppress

import psutil


class OthersShare:
    """The share of the time of this process's cores that other programs (and the host) take from now on.

    This process and all that it started do not count, nor do interrupts, which its own messages cause.
    """

    def __init__(self) -> None:
        self._cores = sorted(os.sched_getaffinity(0))
        self._wall_s, self._others_s = time.monotonic(), self._busy_s() - _own_s()

    def share(self) -> float:
        """0 to 1; the clocks behind it tick a hundred times a second."""
        wall_s = (time.monotonic() - self._wall_s) * len(self._cores)
        return min(1.0, max(0.0, self._busy_s() - _own_s() - self._others_s) / wall_s)

    def _busy_s(self) -> float:
        times = psutil.cpu_times(percpu=True)
        return sum(
            float(t.user + t.nice + t.system + getattr(t, "steal", 0.0))
            for core, t in enumerate(times)
            if core in self._cores
        )


def _own_s() -> float:
    """Of this process, the children it waited for, and those at work."""
    this = psutil.Process()
    times = this.cpu_times()
    total = times.user + times.system + times.children_user + times.children_system
    for child in this.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            times = child.cpu_times()
            total += times.user + times.system
    return float(total)
