"""One span of time for several measurements, one after another."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping


class TimeLeft:
    """Gives each measurement its share of what is left when it begins: after slow ones the rest get less.

    No measurement is left out: with no time at all it makes its fewest turns.
    """

    def __init__(
        self, seconds: float, shares: Mapping[str, float], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._shares = dict(shares)
        self._clock = clock
        self._until = clock() + seconds

    def next(self, name: str) -> float:
        """Seconds for the measurement that begins now; each is asked for once. A share may be 0."""
        later = sum(self._shares.values()) - self._shares[name]
        share = self._shares.pop(name)
        return max(0.0, self._until - self._clock()) * share / (share + later) if share else 0.0
