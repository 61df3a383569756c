"""What each head has sent to a worker and is still owed: what a Pong tells of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

# Heads that are remembered. One that is forgotten only loses what its next Pong would have said.
MAX_SESSIONS = 64


@dataclass(slots=True)
class _Session:
    oldest_epoch: int = 0
    received_id: int = 0
    open_ids: int = 0


@dataclass(frozen=True, slots=True)
class SessionSeen:
    """A look at one session and at the worker's work; fields as those of `Pong`."""

    queue_depth: int
    received_id: int
    open_ids: int
    computing_id: int
    computing_s: float


class Sessions:
    """Shared by the threads of a worker's two sockets.

    Every count is changed by the data socket's threads alone, one at a time, and the pulse's thread looks at
    them without waiting. So a look costs a busy worker nothing, and may be one message old.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._of: dict[int, _Session] = {}
        self._open = 0
        self._computing: tuple[int, int, float] | None = None

    def pinged(self, session: int, oldest_epoch: int) -> None:
        """This head has no plan in flight older than `oldest_epoch`. Pings may overtake each other."""
        of = self._session(session)
        of.oldest_epoch = max(of.oldest_epoch, oldest_epoch)

    def received(self, session: int, request_id: int) -> int:
        """A forward request came; every one is `closed` once.

        Returns:
            The oldest plan whose requests are taken from this head, 0 before any ping.
        """
        of = self._of.get(session) or self._session(session)
        if request_id > of.received_id:
            of.received_id = request_id
        of.open_ids += 1
        self._open += 1
        return of.oldest_epoch

    def computing(self, session: int, request_id: int) -> None:
        """Its computation begins."""
        self._computing = session, request_id, self._clock()

    def computed(self, session: int) -> None:
        """The computation that had begun, of a request of this session, has ended and was answered."""
        self._computing = None
        self.closed(session)

    def closed(self, session: int) -> None:
        """A request of this session was answered, or will never be."""
        of = self._of.get(session)
        if of is not None and of.open_ids:
            of.open_ids -= 1
        self._open -= 1

    def seen(self, session: int) -> SessionSeen:
        """What to tell this head."""
        of = self._of.get(session) or _Session()
        computing = self._computing
        whose, request_id, since_s = computing if computing is not None else (session, 0, 0.0)
        return SessionSeen(
            queue_depth=self._open,
            received_id=of.received_id,
            open_ids=of.open_ids,
            computing_id=request_id if whose == session else 0,
            computing_s=max(0.0, self._clock() - since_s) if computing is not None else 0.0,
        )

    def _session(self, session: int) -> _Session:
        with self._lock:
            if session not in self._of and len(self._of) >= MAX_SESSIONS:
                idle = (number for number, of in self._of.items() if not of.open_ids)
                del self._of[next(idle, next(iter(self._of)))]
            return self._of.setdefault(session, _Session())
