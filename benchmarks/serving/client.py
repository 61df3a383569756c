"""A client of streamed completions that notes when each piece came."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from benchmarks.serving.asks import Ask

Outcome = Literal["answered", "refused", "lost", "failed", "hung"]
"""`refused` with a status that may be tried again, `lost` in the middle likewise; `failed`: any other end."""
_RETRYABLE_STATUS = (429, 503)
_RETRYABLE_CODES = ("cluster_lost", "service_unavailable")


@dataclass(slots=True)
class Answer:
    """What came of an ask.

    Attributes:
        begun_s: when it was sent, on time.monotonic's clock; `ended_s`: when all was there.
        pieces_s: when each piece of the text came.
        tokens, drafted, accepted: of the answer, as the server counts them.
    """

    begun_s: float
    outcome: Outcome = "failed"
    status: int = 0
    text: str = ""
    pieces_s: list[float] = field(default_factory=list)
    ended_s: float = 0.0
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    retry_after_s: float = 1.0
    finish: str = ""
    detail: str = ""

    @property
    def first_s(self) -> float:
        """Seconds to the first piece."""
        return self.pieces_s[0] - self.begun_s

    @property
    def gaps_s(self) -> list[float]:
        """Seconds between pieces."""
        return [later - sooner for sooner, later in zip(self.pieces_s, self.pieces_s[1:], strict=False)]


def body_of(ask: Ask) -> dict[str, Any]:
    """As OpenAI's older completions have it, which llama.cpp's server speaks as well."""
    return {
        "model": "any",
        "prompt": list(ask.prompt),
        "max_tokens": ask.max_tokens,
        "temperature": ask.temperature,
        "seed": ask.seed,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def complete(address: tuple[str, int], ask: Ask, patience_s: float = 600.0) -> Answer:
    """Ask, and read to the end. Whatever goes wrong is in the answer; nothing is raised for it."""
    answer = Answer(time.monotonic())
    try:
        async with asyncio.timeout(patience_s):
            await _exchange(address, body_of(ask), answer)
    except TimeoutError:
        answer.outcome, answer.detail = "hung", f"nothing after {patience_s:g} s"
    except (OSError, ValueError, asyncio.IncompleteReadError) as error:
        answer.outcome, answer.detail = "failed", f"{type(error).__name__}: {error}"
    answer.ended_s = time.monotonic()
    return answer


async def _exchange(address: tuple[str, int], body: Mapping[str, Any], answer: Answer) -> None:
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(request_bytes(address, "/v1/completions", body))
        answer.status, headers = await read_head(reader)
        if answer.status != 200:
            content = await reader.read()
            is_retryable = answer.status in _RETRYABLE_STATUS and "retry-after" in headers
            answer.outcome = "refused" if is_retryable else "failed"
            answer.retry_after_s = float(headers.get("retry-after", 1))
            answer.detail = content.decode(errors="replace")[:300]
            return
        async for data in events(reader, headers):
            if data == "[DONE]":
                if not answer.detail:
                    answer.outcome = "answered"
                break
            _take(json.loads(data), answer)
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


def _take(chunk: Mapping[str, Any], answer: Answer) -> None:
    error = chunk.get("error")
    if error:
        answer.outcome = "lost" if error.get("code") in _RETRYABLE_CODES else "failed"
        answer.detail = str(error)[:300]
        return
    for choice in chunk.get("choices", ()):
        # A random model's tokens may be half a character, which llama.cpp sends as a piece without text.
        if choice.get("text") or not choice.get("finish_reason"):
            answer.pieces_s.append(time.monotonic())
            answer.text += choice.get("text") or ""
        answer.finish = choice.get("finish_reason") or answer.finish
    usage = chunk.get("usage")
    if usage:
        details = usage.get("completion_tokens_details") or {}
        answer.tokens = usage["completion_tokens"]
        answer.drafted, answer.accepted = details.get("drafted_tokens", 0), details.get("accepted_tokens", 0)


def request_bytes(address: tuple[str, int], path: str, body: Mapping[str, Any]) -> bytes:
    """A POST that ends its connection."""
    content = json.dumps(body).encode()
    lines = (
        f"POST {path} HTTP/1.1",
        f"Host: {address[0]}:{address[1]}",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
        "Connection: close",
    )
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


async def read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Status and headers of an answer; raises ValueError or IncompleteReadError where there are none."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return int(lines[0].split(" ")[1]), headers


async def events(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> AsyncIterator[str]:
    """The data of server-sent events."""
    is_chunked = headers.get("transfer-encoding", "").lower() == "chunked"
    left = b""
    while True:
        if is_chunked:
            size = int((await reader.readline()).split(b";")[0] or b"0", 16)
            part = await reader.readexactly(size + 2)
            part = part[:size]
        else:
            part = await reader.read(65536)
        if not part:
            return
        left += part
        *whole, left = left.split(b"\n\n")
        for event in whole:
            for line in event.splitlines():
                if line.startswith(b"data: "):
                    yield line[6:].decode()
