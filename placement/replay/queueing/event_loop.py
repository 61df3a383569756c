"""A virtual clock: what happens next, and servers that take one job at a time."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any


class EventLoop:
    """Calls actions in the order of their times, those of one time in the order they were asked for."""

    __slots__ = ("_heap", "_order", "now_s", "num_events")

    def __init__(self) -> None:
        self.now_s = 0.0
        self.num_events = 0
        self._order = 0
        self._heap: list[tuple[float, int, Callable[[Any], None], Any]] = []

    def at(self, time_s: float, action: Callable[[Any], None], subject: Any) -> None:
        """Call `action(subject)` at `time_s`, now or later."""
        self._order += 1
        heappush(self._heap, (time_s, self._order, action, subject))

    def run(self) -> None:
        """Until nothing is left to happen, or `stop`."""
        heap = self._heap
        while heap:
            self.now_s, _, action, subject = heappop(heap)
            self.num_events += 1
            action(subject)

    def stop(self) -> None:
        """Nothing that was asked for happens any more."""
        self._heap.clear()


class Station:
    """A server with a queue: one job at a time, first come, first served (a device, one way of a link)."""

    __slots__ = ("busy_s", "free_s")

    def __init__(self) -> None:
        self.busy_s = 0.0
        self.free_s = 0.0

    def serve(self, now_s: float, seconds: float) -> float:
        """When a job that arrives now is done. Calls come in the order of `now_s`."""
        free_s = self.free_s
        done_s = (free_s if free_s > now_s else now_s) + seconds
        self.free_s = done_s
        self.busy_s += seconds
        return done_s

    def busy_until_s(self, now_s: float) -> float:
        """Seconds at work up to `now_s`: the queue that is left then does not count."""
        return self.busy_s - max(0.0, self.free_s - now_s)
