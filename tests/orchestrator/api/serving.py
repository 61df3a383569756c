"""A real server on loopback, in a thread of its own; and conditions that are waited for."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2

from orchestrator.api.server import serve
from orchestrator.api.settings import ApiSettings
from orchestrator.api.watch_routes import WhatIf
from orchestrator.serving.answer import Engine
from orchestrator.serving.state import StateSource


class Server:
    """`url`: without a slash at its end."""

    def __init__(
        self, engine: Engine, settings: ApiSettings, source: StateSource | None, whatif: WhatIf | None
    ) -> None:
        self._engine = engine
        self._source = source
        self._whatif = whatif
        self._settings = settings
        self._is_ready = threading.Event()
        self._error: BaseException | None = None
        self.url = ""
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()
        assert self._is_ready.wait(60)
        if self._error is not None:
            raise self._error

    def call(self, work: Callable[[], Any]) -> None:
        """Do something in the server's loop."""
        self._loop.call_soon_threadsafe(work)

    def stop(self) -> None:
        self.call(self._stop.set)

    def join(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._error = error
        self._is_ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        await serve(
            self._engine,
            self._settings,
            source=self._source,
            whatif=self._whatif,
            stop=self._stop,
            ready=self._ready,
        )

    def _ready(self, url: str) -> None:
        self.url = url
        self._is_ready.set()


@contextmanager
def served(
    engine: Engine,
    settings: ApiSettings | None = None,
    *,
    source: StateSource | None = None,
    whatif: WhatIf | None = None,
) -> Iterator[Server]:
    server = Server(engine, settings or ApiSettings(port=0, grace_s=0.0), source, whatif)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        server.join()


def client(server: Server) -> httpx2.Client:
    """Of a server without TLS. Loading certificates would take longer than most tests."""
    return httpx2.Client(base_url=server.url, timeout=60, trust_env=False, verify=False)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.005)
