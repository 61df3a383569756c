"""How long an action usually takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import fmean, median


def usual_s(action: Callable[[], object], seconds: float, least_turns: int = 3) -> float:
    """The median of the turns that fit `seconds`, `least_turns` at least, after one that does not count."""
    until = time.perf_counter() + seconds
    action()
    found: list[float] = []
    while len(found) < least_turns or time.perf_counter() < until:
        started = time.perf_counter()
        action()
        found.append(time.perf_counter() - started)
    return median(found)


def mean(seconds: Sequence[float]) -> float:
    """Without the tenth at either end, which other programs make."""
    left_out = len(seconds) // 10
    return fmean(sorted(seconds)[left_out : len(seconds) - left_out])
