"""A request's body: read within bounds of size and time, then JSON within bounds of depth."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
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

_MOST_NAMED = 100_000
"""Colons, at most, of a body in which a key that stands twice is told by its name. To find it takes time."""


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
    num_keys, num_colons = _checked(document)
    # Outside of texts, each colon stands behind a key. So the body has as many as the document has keys,
    # unless a key stood twice: that key's colon is lost, with any in the value that went with it. Nothing
    # makes up for what is lost, so the numbers are equal only where nothing is.
    if body.count(b":") + _escaped_colons(body) - num_colons != num_keys:
        raise _twice(text)
    return document


def _checked(document: dict[str, Any]) -> tuple[int, int]:
    """How many keys it has, and how many colons its keys and texts have.

    Raises:
        ApiError: it nests too deeply, or has a number that JSON can write but not hold, such as 1e999.
    """
    num_keys = num_colons = depth = 0
    level: list[dict[str, Any] | list[Any]] = [document]
    while level:
        depth += 1
        if depth > MOST_DEPTH:
            raise ApiError(400, f"the body nests deeper than {MOST_DEPTH} levels")
        below: list[dict[str, Any] | list[Any]] = []
        for holder in level:
            values: Iterable[Any] = holder
            if isinstance(holder, dict):
                num_keys += len(holder)
                num_colons += "".join(holder).count(":")
                values = holder.values()
            for value in values:
                kind = type(value)
                if kind is str:
                    num_colons += value.count(":")
                elif kind is dict or kind is list:
                    below.append(value)
                elif kind is float and not math.isfinite(value):
                    raise ApiError(400, "the body has a number that is not finite")
        level = below
    return num_keys, num_colons


def _escaped_colons(body: bytes) -> int:
    # Backslashes in pairs are texts' own.
    plain = body.replace(rb"\\", b"")
    return plain.count(rb"\u003a") + plain.count(rb"\u003A")


def _twice(text: str) -> ApiError:
    """The refusal of a body in which some object has a key twice."""
    if text.count(":") <= _MOST_NAMED:
        try:
            _KEYS.decode(text)
        except ApiError as error:
            return error
    return ApiError(400, "a key stands twice in one object: keep one")


def _only_once(pairs: Sequence[tuple[str, Any]]) -> None:
    """Refuse an object with a key twice, of which readers take either value (RFC 8259, section 4)."""
    if len(dict(pairs)) < len(pairs):
        key = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ApiError(400, f"{quote(key)} stands twice in one object: keep one")


_KEYS = json.JSONDecoder(object_pairs_hook=_only_once)


def _kind(value: object) -> str:
    if isinstance(value, list):
        return "array"
    return "string" if isinstance(value, str) else "value"
