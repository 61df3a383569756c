"""How much a client may ask: requests at once, and requests a minute. Time is passed in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one client.

    Attributes:
        running: requests at once; None for no bound.
        per_minute: requests, of which so many may also come at once; None for no bound.
    """

    running: int | None = None
    per_minute: int | None = None


UNBOUNDED = Limits()


@dataclass(frozen=True, slots=True)
class Bucket:
    """Tokens that refill steadily; a request takes one."""

    tokens: float
    at_s: float


def take(bucket: Bucket, per_minute: int, now_s: float) -> tuple[Bucket, float]:
    """The bucket after a request at `now_s`, and the seconds until it could be taken; 0 where it was."""
    rate = per_minute / 60
    tokens = min(float(per_minute), bucket.tokens + max(0.0, now_s - bucket.at_s) * rate)
    if tokens >= 1:
        return Bucket(tokens - 1, now_s), 0.0
    return Bucket(tokens, now_s), (1 - tokens) / rate


class Admission:
    """Counts what clients have running, and when they asked."""

    def __init__(self, limits: Mapping[str, Limits]) -> None:
        """`limits`: by client; a client without an entry has none."""
        self._limits = limits
        self._buckets: dict[str, Bucket] = {}
        self._running: dict[str, int] = {}

    def enter(self, client: str, now_s: float) -> tuple[str, float] | None:
        """Let a request in, which then must `leave`; or why not, and in how many seconds it may try again."""
        limits = self._limits.get(client, UNBOUNDED)
        running = self._running.get(client, 0)
        if limits.running is not None and running >= limits.running:
            return f"this key may have {_requests(limits.running)} running at once", 1.0
        if limits.per_minute is not None:
            full = Bucket(float(limits.per_minute), now_s)
            bucket, wait_s = take(self._buckets.get(client, full), limits.per_minute, now_s)
            self._buckets[client] = bucket
            if wait_s > 0:
                return f"this key may send {_requests(limits.per_minute)} a minute", wait_s
        self._running[client] = running + 1
        return None

    def leave(self, client: str) -> None:
        """A request that was let in has ended."""
        self._running[client] -= 1
        if not self._running[client]:
            del self._running[client]


def _requests(number: int) -> str:
    return "1 request" if number == 1 else f"{number} requests"
