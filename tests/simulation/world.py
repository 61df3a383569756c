"""A virtual clock, and a network that loses, delays, doubles and reorders messages."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import numpy as np


@dataclass(frozen=True)
class Faults:
    """Of every message, each way: chances, and the longest delay in seconds."""

    lost: float = 0.0
    doubled: float = 0.0
    delay_s: float = 0.001


@dataclass
class World:
    """Things happen at their time, in the order in which they were planned where times are equal."""

    rng: np.random.Generator
    now_s: float = 0.0
    faults: Faults = field(default_factory=Faults)
    _queue: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _order: count[int] = field(default_factory=count)

    def at(self, time_s: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (max(time_s, self.now_s), next(self._order), happen))

    def carry(self, arrive: Callable[[], None]) -> None:
        """A message leaves now and arrives once, twice or never; later ones may overtake it."""
        rng, faults = self.rng, self.faults
        copies = 0 if rng.random() < faults.lost else 2 if rng.random() < faults.doubled else 1
        for _ in range(copies):
            self.at(self.now_s + 1e-4 + rng.random() * faults.delay_s, arrive)

    def run_until(self, time_s: float, is_enough: Callable[[], bool]) -> None:
        """Let time pass to `time_s`, or until it is enough."""
        while not is_enough():
            if not self._queue or self._queue[0][0] > time_s:
                self.now_s = max(self.now_s, time_s)
                return
            at_s, _, happen = heapq.heappop(self._queue)
            self.now_s = max(self.now_s, at_s)
            happen()
