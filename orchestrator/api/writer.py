"""What every API's answer is made with: events of the engine in, JSON out; no sockets, no clock."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from orchestrator.api.errors import ApiError
from orchestrator.serving.answer import AnswerEvent, TokenLogprob, Usage

Json = dict[str, Any]


class Writer(Protocol):
    """Makes an answer of one API. Every event goes through `take`, whether it is streamed or not."""

    def take(self, choice: int, event: AnswerEvent) -> list[Json]:
        """What a stream says at an event of one of the answers."""
        ...

    def end(self) -> list[Json]:
        """What a stream says once all answers have finished."""
        ...

    def failed(self, error: ApiError) -> list[Json]:
        """What a stream says when it breaks off."""
        ...

    def whole(self) -> Json:
        """The answer in one piece, once all have finished."""
        ...

    def frame(self, chunk: Json) -> bytes:
        """A chunk as an event of the stream."""
        ...

    def waiting(self) -> bytes:
        """Sent where nothing else is to be said for long, so that nobody between gives up."""
        ...

    def last(self) -> bytes:
        """The end of a stream."""
        ...


def data_frame(chunk: Mapping[str, Any]) -> bytes:
    """An event without a name."""
    return b"data: " + dumped(chunk) + b"\n\n"


def named_frame(chunk: Mapping[str, Any]) -> bytes:
    """An event that is named as its `type` says."""
    return b"event: " + str(chunk["type"]).encode() + b"\ndata: " + dumped(chunk) + b"\n\n"


def dumped(document: Mapping[str, Any]) -> bytes:
    """JSON in one line. Half of a surrogate pair, which has no UTF-8, becomes a replacement character."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8", "replace")


COMMENT = b": waiting\n\n"
"""Clients of server-sent events pass over lines that begin with a colon."""


def logprobs_of(tokens: Sequence[TokenLogprob]) -> list[Json]:
    """Chosen tokens as chat completions and responses show them."""
    return [
        {
            **_logprob(token.text, token.data, token.logprob),
            "top_logprobs": [_logprob(*top) for top in token.top],
        }
        for token in tokens
    ]


def finite(logprob: float) -> float:
    """JSON has no infinity: OpenAI writes -9999 for a token that cannot be."""
    return max(logprob, -9999.0)


def summed(usages: Sequence[Usage]) -> Usage:
    """Of several answers to the same prompt, which counts once."""
    first = usages[0]
    return Usage(
        first.prompt_tokens,
        first.cached_tokens,
        sum(usage.completion_tokens for usage in usages),
        sum(usage.reasoning_tokens for usage in usages),
        sum(usage.drafted for usage in usages),
        sum(usage.accepted for usage in usages),
    )


def _logprob(text: str, data: bytes, logprob: float) -> Json:
    return {"token": text, "logprob": finite(logprob), "bytes": list(data)}
