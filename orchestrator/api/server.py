"""The server: an application around an engine, and the loop that serves it until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

import uvicorn
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from orchestrator.api.anthropic_routes import anthropic_routes
from orchestrator.api.bodies import ClientLeft
from orchestrator.api.connections import bounded_protocol
from orchestrator.api.errors import ApiError
from orchestrator.api.fields import TABLES
from orchestrator.api.guard import Guard, Life, shape_of
from orchestrator.api.listening import check_tls, listen, url_of
from orchestrator.api.openai_routes import openai_routes
from orchestrator.api.openapi import openapi
from orchestrator.api.sending import error_response
from orchestrator.api.service import Service
from orchestrator.api.settings import ApiSettings
from orchestrator.api.watch_routes import WhatIf, health_routes, watch_routes
from orchestrator.serving.answer import Engine
from orchestrator.serving.state import StateSource

logger = logging.getLogger(__name__)

_HEADER_BYTES = 65_536
# Beside connections, for model files, workers and all else.
_OTHER_FILES = 1024
# From the end of the grace to the last byte of answers that are ended.
_LAST_WORDS_S = 5
_STOPPING = (signal.SIGINT, signal.SIGTERM)


def build_app(
    engine: Engine,
    settings: ApiSettings,
    life: Life | None = None,
    *,
    source: StateSource | None = None,
    whatif: WhatIf | None = None,
) -> FastAPI:
    """All APIs on one engine.

    Args:
        life: says when to stop; by itself the application never does.
        source: what the page, the state and the metrics are made of; without it there are none.
        whatif: ranks changes to the cluster, for the page.
    """
    life = life or Life()
    service = Service(engine, settings, life)
    app = FastAPI(title="Potluck", docs_url=None, redoc_url=None)
    app.include_router(openai_routes(service))
    app.include_router(anthropic_routes(service))
    app.include_router(health_routes(source))
    if source is not None:
        app.include_router(watch_routes(source, whatif))
    app.add_middleware(Guard, settings=settings, life=life, clock=time.monotonic)
    app.add_exception_handler(ApiError, _on_error)
    app.add_exception_handler(HTTPException, _on_error)
    app.add_exception_handler(ClientLeft, _on_left)
    document = openapi()
    app.openapi = lambda: document  # type: ignore[method-assign]
    return app


async def serve(
    engine: Engine,
    settings: ApiSettings,
    *,
    source: StateSource | None = None,
    whatif: WhatIf | None = None,
    stop: asyncio.Event | None = None,
    ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve until SIGINT or SIGTERM, or until `stop` is set.

    Then no more is taken, and answers under way get `grace_s` to finish before they are ended. A second
    signal ends them at once.

    Args:
        source, whatif: as for `build_app`.
        ready: told the server's URL once it listens.

    Raises:
        InputError: the address cannot be listened on, or the TLS files cannot be used.
    """
    life = Life()
    app = build_app(engine, settings, life, source=source, whatif=whatif)
    check_tls(settings)
    listener = listen(settings)
    url = url_of(settings, listener)
    server = _Server(_config(app, settings, url), life, settings.grace_s)
    _allow_files(settings.most_connections + _OTHER_FILES)
    waiting = asyncio.create_task(_stop_when(stop, server))
    telling = asyncio.create_task(_tell_when_ready(server, url, ready))
    try:
        await server.serve(sockets=[listener])
    finally:
        for task in (waiting, telling):
            task.cancel()
        listener.close()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, life: Life, grace_s: float) -> None:
        super().__init__(config)
        self._life = life
        self._grace_s = grace_s

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Only note them.

        uvicorn would send itself the signal again at its end, and whoever called us could clean up nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        for number in _STOPPING:
            loop.add_signal_handler(number, self._stop)
        try:
            yield
        finally:
            for number in _STOPPING:
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        """The first signal lets answers finish, the second ends them, a third waits for nobody who reads."""
        if self._life.is_over.is_set():
            self.force_exit = True
        elif self.should_exit:
            self._life.is_over.set()
        else:
            self.should_exit = True
            if num_requests := len(self.server_state.tasks):
                logger.warning(
                    "stopping: %d request%s under way, at most %g s; Ctrl-C again ends them at once",
                    num_requests,
                    "" if num_requests == 1 else "s",
                    self._grace_s,
                )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._life.is_stopping.set()
        timer = asyncio.get_running_loop().call_later(self._grace_s, self._life.is_over.set)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()
            self._life.is_over.set()


def _config(app: FastAPI, settings: ApiSettings, url: str) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="asyncio",
        http=bounded_protocol(settings.headers_s, settings.most_connections, url),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=int(settings.keep_alive_s),
        timeout_graceful_shutdown=int(settings.grace_s) + _LAST_WORDS_S,
        h11_max_incomplete_event_size=_HEADER_BYTES,
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
    )


def _allow_files(wanted: int) -> None:
    """Raise the soft limit of open files, which is often 1,024: idle connections alone may be more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


async def _stop_when(stop: asyncio.Event | None, server: _Server) -> None:
    if stop is not None:
        await stop.wait()
        server.should_exit = True


async def _tell_when_ready(server: _Server, url: str, ready: Callable[[str], None]) -> None:
    while not server.started:
        await asyncio.sleep(0.01)
    ready(url)


async def _on_error(request: Request, error: Exception) -> Response:
    """Of a route's own, and of FastAPI for paths and methods that there are not."""
    shape = shape_of(request.url.path, (name for name, _ in request.headers.raw))
    headers: Mapping[str, str] = {}
    if isinstance(error, HTTPException):
        headers = error.headers or {}
        words = f"{request.method} {request.url.path[:200]}: {error.detail}"
        if allowed := headers.get("Allow"):
            words += f", expected {allowed}"
        if error.status_code == 404 and (meant := _meant(request.url.path)) is not None:
            words += f"; did you mean {meant}? OpenAI's base URL ends in /v1, Anthropic's does not"
        error = ApiError(error.status_code, words)
    assert isinstance(error, ApiError)
    response = error_response(error, shape)
    response.headers.update(headers)
    return response


def _meant(path: str) -> str | None:
    """The path of an API that a client looks for with `/v1` left out or doubled."""
    known = {route.split()[1] for route in TABLES} | {"/v1/models"}
    meant = "/v1" + path.removeprefix("/v1").removeprefix("/v1").rstrip("/")
    return meant if meant in known and meant != path else None


async def _on_left(request: Request, error: Exception) -> Response:
    """Nobody is there to read it."""
    del request, error
    return Response(status_code=499)
