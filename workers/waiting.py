"""Requests that wait while another is computed: a queue for each peer, served in turns."""

from __future__ import annotations

from collections import deque

from transport.messages import ForwardRequest, WireLimits

# The head sends one message a worker and layer, or a few for a long prefill.
MAX_WAITING = 16
# Of the largest messages there are: what waits for one peer takes no more memory than so many.
MAX_WAITING_MESSAGES_BYTES = 4


class Waiting:
    """Whoever finds its own queue full is told so and asks again; others do not notice."""

    def __init__(self, limits: WireLimits) -> None:
        self._max_bytes = MAX_WAITING_MESSAGES_BYTES * limits.max_frame_bytes
        self._of: dict[bytes, deque[ForwardRequest]] = {}
        self._num_requests = 0

    def __len__(self) -> int:
        return self._num_requests

    def add(self, peer: bytes, request: ForwardRequest) -> bool:
        """False where the peer has as many requests or bytes waiting as it may."""
        queue = self._of.get(peer)
        if queue is None:
            self._of[peer] = deque((request,))
        else:
            waiting_bytes = sum(other.rows.hidden.nbytes for other in queue)
            full = waiting_bytes + request.rows.hidden.nbytes > self._max_bytes
            if full or len(queue) >= MAX_WAITING:
                return False
            queue.append(request)
        self._num_requests += 1
        return True

    def next(self) -> tuple[bytes, ForwardRequest] | None:
        """The oldest request of the peer whose turn it is, who then goes to the end of the line; or None."""
        if not self._of:
            return None
        peer, queue = next(iter(self._of.items()))
        request = queue.popleft()
        del self._of[peer]
        if queue:
            self._of[peer] = queue
        self._num_requests -= 1
        return peer, request

    def clear(self) -> list[ForwardRequest]:
        """Let go of all; gives what waited."""
        waited = [request for queue in self._of.values() for request in queue]
        self._of.clear()
        self._num_requests = 0
        return waited
