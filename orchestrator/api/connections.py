"""Connections that send nothing, or too slowly: each ends in time, and all together stay within bounds."""

from __future__ import annotations

import asyncio
import logging

from uvicorn.protocols.http.h11_impl import H11Protocol

logger = logging.getLogger(__name__)


def bounded_protocol(headers_s: float, most_connections: int, url: str) -> type[H11Protocol]:
    """uvicorn's protocol for one server, with what it has no options for.

    Args:
        headers_s: the first lines of a request must be there so long after a connection is made, or after
            their first bytes.
        most_connections: beyond that, the one that has been idle longest is closed. uvicorn's own limit would
            turn away who comes last, so that idle ones could keep everybody out.
        url: the server's, for the log.
    """
    idle: dict[H11Protocol, None] = {}

    class Bounded(H11Protocol):
        _slow: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._wait()
            idle[self] = None
            if len(self.connections) > most_connections and idle:
                next(iter(idle)).transport.abort()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                idle.pop(self, None)
                self._wait_no_more()
            elif self._slow is None:
                self._wait()

        def send_400_response(self, msg: str) -> None:
            logger.warning("a client spoke TLS or no HTTP; this server is %s", url)
            super().send_400_response(msg)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if not self.transport.is_closing() and self.cycle.response_complete:
                idle[self] = None

        def connection_lost(self, exc: Exception | None) -> None:
            self._wait_no_more()
            idle.pop(self, None)
            super().connection_lost(exc)

        def _wait(self) -> None:
            self._slow = self.loop.call_later(headers_s, self._too_slow)

        def _wait_no_more(self) -> None:
            if self._slow is not None:
                self._slow.cancel()
                self._slow = None

        def _too_slow(self) -> None:
            self._slow = None
            if not self.transport.is_closing():
                self.transport.abort()

    return Bounded
