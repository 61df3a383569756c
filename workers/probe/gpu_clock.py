"""How long an action usually takes on a card, by the card's clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

from workers.gpu.device import Stream

_CLOCK_S = 5e-7
"""What the clock tells apart (CUDA driver API, cuEventElapsedTime)."""


def card_s(stream: Stream, action: Callable[[], object], seconds: float, least_turns: int = 3) -> float:
    """The median of the turns that fit `seconds`, `least_turns` at least, after one that does not count.

    Args:
        action: asks the stream for some work; what it does on the CPU until then does not count.
    """
    until = time.perf_counter() + seconds
    action()
    began, ended = stream.device.event(), stream.device.event()
    found: list[float] = []
    while len(found) < least_turns or time.perf_counter() < until:
        stream.record(began)
        action()
        stream.record(ended)
        ended.synchronize()
        found.append(ended.seconds_since(began))
    return max(_CLOCK_S, median(found))
