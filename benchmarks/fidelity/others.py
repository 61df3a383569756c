"""How much of the processors other programs take, so that what is timed meanwhile can be left out."""

from __future__ import annotations

import os
import time
from contextlib import suppress

import psutil


class OthersShare:
    """The share of the processors' time that other programs (and the host) take from now on.

    This process and all that it started do not count, nor do interrupts, which its own messages cause.
    """

    def __init__(self) -> None:
        self._wall_s, self._others_s = time.monotonic(), _busy_s() - _own_s()

    def share(self) -> float:
        """0 to 1; the clocks behind it tick a hundred times a second."""
        wall_s = (time.monotonic() - self._wall_s) * (os.cpu_count() or 1)
        return max(0.0, _busy_s() - _own_s() - self._others_s) / wall_s


def _busy_s() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + getattr(times, "steal", 0.0))


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
