"""Stands before all routes: who asks, may they, and how much."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.api.addresses import is_same_origin, names_loopback
from orchestrator.api.errors import ApiError, Shape, stopping, unexpected
from orchestrator.api.keys import client_of
from orchestrator.api.limits import Admission
from orchestrator.api.request_id import REQUEST_ID, new_request_id
from orchestrator.api.request_log import NOTE, RequestNote, log_request
from orchestrator.api.sending import error_response
from orchestrator.api.settings import ApiSettings

logger = logging.getLogger(__name__)

LOCAL_CLIENT = "local"
"""Who asks where there are no keys."""

ANYBODY = "anybody"
"""Who asks for the page, which tells nothing of this server: it asks for a key and then for the rest.

Likewise who asks whether it can compute, and is told no more than that.
"""

_OF_ANYBODY = ("/", "/health")


class Life:
    """Of a server: it takes requests, then only finishes them, then ends them."""

    def __init__(self) -> None:
        self.is_stopping = asyncio.Event()
        self.is_over = asyncio.Event()


class Guard:
    """An ASGI application around another."""

    def __init__(self, app: ASGIApp, settings: ApiSettings, life: Life, clock: Callable[[], float]) -> None:
        """`clock`: seconds that only grow."""
        self._app = app
        self._settings = settings
        self._life = life
        self._clock = clock
        self._admission = Admission({key.name: key.limits for key in settings.keys})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._request(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        shape = shape_of(scope["path"], (name for name, _ in scope["headers"]))
        has_begun = False
        request_id = new_request_id()
        REQUEST_ID.set(request_id)
        note = RequestNote(self._clock, self._clock())
        NOTE.set(note)

        async def marked(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                note.status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *_own_headers(request_id)]}
            await send(message)

        try:
            client = note.client = self._checked(scope)
            with self._admitted(client, is_counted=scope["method"] == "POST"):
                scope.setdefault("state", {})["client"] = client
                await self._app(scope, receive, marked)
        except ApiError as error:
            await error_response(error, shape)(scope, receive, marked)
        except Exception:
            logger.exception("request %s failed", request_id)
            if has_begun:
                raise
            await error_response(unexpected(), shape)(scope, receive, marked)
        finally:
            log_request(request_id, scope, note)

    def _checked(self, scope: Scope) -> str:
        """The client's name.

        Raises:
            ApiError: it has no business here.
        """
        headers = _headers(scope)
        host = headers.get("host", "")
        if not self._settings.keys and not names_loopback(host):
            raise ApiError(403, "the request's Host is not this machine: say localhost or 127.0.0.1")
        origin = headers.get("origin")
        if origin is not None and not is_same_origin(origin, host, scope["scheme"]):
            raise ApiError(403, "pages of other origins may not ask this server")
        if self._life.is_stopping.is_set():
            raise stopping()
        if not self._settings.keys:
            return LOCAL_CLIENT
        if scope["method"] == "GET" and scope["path"] in _OF_ANYBODY:
            return ANYBODY
        key = _key(headers)
        if not key:
            raise ApiError(401, "no key was sent: send one as a bearer token or as x-api-key")
        client = client_of(key, self._settings.keys)
        if client is None:
            raise ApiError(401, "the key is not one of this server's, which reads them when it starts")
        return client

    def _admitted(self, client: str, *, is_counted: bool) -> AbstractContextManager[None]:
        return _place(self._admission if is_counted else None, client, self._clock)


@contextmanager
def _place(admission: Admission | None, client: str, clock: Callable[[], float]) -> Any:
    """Raises ApiError where the client has too much running, or asks too often."""
    if admission is None:
        yield
        return
    if (full := admission.enter(client, clock())) is not None:
        why, wait_s = full
        raise ApiError(429, why, retry_after_s=wait_s)
    try:
        yield
    finally:
        admission.leave(client)


def shape_of(path: str, header_names: Iterable[bytes]) -> Shape:
    """Whose errors a client expects."""
    is_anthropic = path.startswith("/v1/messages") or b"anthropic-version" in header_names
    return "anthropic" if is_anthropic else "openai"


def _headers(scope: Scope) -> dict[str, str]:
    """A header that comes twice counts as both, so that neither hides the other."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1"), value.decode("latin-1")
        found[key] = f"{found[key]}, {text}" if key in found else text
    return found


def _key(headers: dict[str, str]) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


def _own_headers(request_id: str) -> list[tuple[bytes, bytes]]:
    # OpenAI's clients look for the first, Anthropic's for the second.
    return [
        (b"x-request-id", request_id.encode()),
        (b"request-id", request_id.encode()),
        (b"x-content-type-options", b"nosniff"),
    ]
