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


ASLEEP_S = 0.005
"""About what others take in a layer of a step. A core that slept wakes slowly, and its caches are cold."""


def woken_s(
    action: Callable[[], object],
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> float:
    """How much longer an action takes after ASLEEP_S: of the medians, in turns, for about so long."""
    asleep: list[float] = []
    awake: list[float] = []
    until = clock() + seconds
    action()
    while len(asleep) < 3 or clock() < until:
        for found in (asleep, awake):
            if found is asleep:
                sleep(ASLEEP_S)
            started = clock()
            action()
            found.append(clock() - started)
    return max(0.0, median(asleep) - median(awake))


def mean(seconds: Sequence[float]) -> float:
    """Without the tenth at either end, which other programs make."""
    left_out = len(seconds) // 10
    return fmean(sorted(seconds)[left_out : len(seconds) - left_out])
