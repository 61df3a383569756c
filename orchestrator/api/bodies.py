"""A request's body: read within bounds of size and time, then JSON within bounds of depth."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pydantic_core import from_json
from starlette.types import Receive

from orchestrator.api.errors import ApiError
from placement.files.quote import quote

MOST_BYTES = 10_000_000
MOST_DEPTH = 64
MOST_BRACKETS = 300_000
"""Opening ones, also inside of texts. A million lists take a second to build, and nothing else runs in it."""
LARGE_BYTES = 100_000
"""Larger ones are read in a thread, so that answers under way are not held up."""


class ClientLeft(Exception):
    """The connection was closed before the request was whole."""


async def read_body(receive: Receive, most_bytes: int, body_s: float) -> bytes:
    """All of it, counted as it comes, whatever its header promised.

    Raises:
        ApiError: it is too large, or takes longer than `body_s`.
        ClientLeft: it broke off.
    """
    parts, size = [], 0
    try:
        async with asyncio.timeout(body_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientLeft
                part = message.get("body", b"")
                size += len(part)
                if size > most_bytes:
                    raise ApiError(413, f"the body has more than {most_bytes:,} bytes", code="too_large")
                parts.append(part)
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        raise ApiError(408, f"the body was not there after {body_s:g} s") from None


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object of a body.

    Raises:
        ApiError: it is not UTF-8, not JSON, no object, nests too deeply, or has a number that is not finite
            or a key twice in one object.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is not UTF-8: byte {error.start:,} is wrong") from None
    if body.count(b"[") + body.count(b"{") > MOST_BRACKETS:
        raise ApiError(400, f"the body has more than {MOST_BRACKETS:,} opening brackets")
    try:
        document = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise ApiError(400, f"the body is a JSON {_kind(document)}, expected an object")
    _check(document)
    # 25 ms for a conversation of 10 MB; at worst, for 870,000 keys, 1 s, which is longer than all before it.
    _KEYS.decode(text)
    return document


def _only_once(pairs: Sequence[tuple[str, Any]]) -> None:
    """Refuse an object with a key twice, of which readers take either value (RFC 8259, section 4)."""
    if len(dict(pairs)) < len(pairs):
        key = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ApiError(400, f"{quote(key)} stands twice in one object: keep one")


_KEYS = json.JSONDecoder(object_pairs_hook=_only_once, strict=False)


def _check(document: dict[str, Any]) -> None:
    """Refuse what nests too deeply, and numbers that JSON can write but not hold, such as 1e999."""
    waiting: list[tuple[Any, int]] = [(document, 1)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, dict | list):
            if depth > MOST_DEPTH:
                raise ApiError(400, f"the body nests deeper than {MOST_DEPTH} levels")
            inner = value.values() if isinstance(value, dict) else value
            waiting.extend((part, depth + 1) for part in inner if isinstance(part, dict | list | float))
        elif not math.isfinite(value):
            raise ApiError(400, "the body has a number that is not finite")


def _kind(value: object) -> str:
    if isinstance(value, list):
        return "array"
    return "string" if isinstance(value, str) else "value"
