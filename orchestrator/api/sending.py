"""Sends answers, and stops making them as soon as the client has left."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing, suppress
from typing import Any

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from orchestrator.api.errors import ApiError, Shape, body_of, headers_of, unexpected
from orchestrator.api.request_id import REQUEST_ID
from orchestrator.api.writer import dumped

logger = logging.getLogger(__name__)

_JSON = b"application/json"


def json_response(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON as our writers make it."""
    return Response(dumped(document), status, headers, media_type=_JSON.decode())


def error_response(error: ApiError, shape: Shape) -> Response:
    """An error in the shape that the client expects."""
    return json_response(body_of(error, shape), error.status, headers_of(error))


class Whole(Response):
    """An answer in one piece, made while the connection is watched."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, Any]], shape: Shape) -> None:
        super().__init__()
        self._work = work
        self._shape = shape

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def made() -> None:
            await (await _or_error(self._work, self._shape))(scope, receive, send)

        await _until_gone(made(), receive)


class Streamed(Response):
    """Server-sent events, made while the connection is watched.

    An error before the first of them is an error of HTTP.
    """

    def __init__(self, chunks: AsyncGenerator[bytes], shape: Shape, write_s: float) -> None:
        """`write_s`: a client that reads nothing for so long is taken for gone."""
        super().__init__()
        self._chunks = chunks
        self._shape = shape
        self._write_s = write_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _until_gone(self._stream(scope, receive, send), receive)

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._chunks):
            try:
                first = await anext(self._chunks)
            except ApiError as error:
                await error_response(error, self._shape)(scope, receive, send)
                return
            headers = [
                (b"content-type", b"text/event-stream; charset=utf-8"),
                (b"cache-control", b"no-cache"),
                # Proxies would keep events back.
                (b"x-accel-buffering", b"no"),
            ]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            try:
                await self._write(send, first)
                async for chunk in self._chunks:
                    await self._write(send, chunk)
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            except TimeoutError:
                logger.info("request %s: its client reads nothing, so it is ended", REQUEST_ID.get())

    async def _write(self, send: Send, chunk: bytes) -> None:
        message: Message = {"type": "http.response.body", "body": chunk, "more_body": True}
        async with asyncio.timeout(self._write_s):
            await send(message)


async def _or_error(work: Callable[[], Awaitable[Any]], shape: Shape) -> Response:
    try:
        return json_response(await work())
    except ApiError as error:
        return error_response(error, shape)
    except Exception:
        logger.exception("request %s failed", REQUEST_ID.get())
        return error_response(unexpected(), shape)


async def _until_gone(work: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Do it, unless the client leaves first; then it is cancelled."""
    tasks = [asyncio.create_task(work), asyncio.create_task(_gone(receive))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError, Exception):
                await task


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
