"""Anthropic's messages, streamed and whole, from the engine's events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.api.carried import sealed, signature
from orchestrator.api.errors import ApiError, body_of
from orchestrator.api.tools import Tools
from orchestrator.api.writer import Json, named_frame
from orchestrator.serving.answer import (
    AnswerEvent,
    CallArguments,
    CallEnded,
    CallStarted,
    Finished,
    FinishReason,
    Prefilled,
    Reasoning,
    Started,
    Text,
    Usage,
)

STOP_REASONS: Mapping[FinishReason, str] = {
    "stop": "end_turn",
    "stop_text": "stop_sequence",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    # Anthropic has no words for these: the answer was cut, as by a limit.
    "loop": "max_tokens",
    "shutdown": "max_tokens",
    "form": "max_tokens",
    "lost": "max_tokens",
}
_PING: Json = {"type": "ping"}


class MessageWriter:
    """Fulfils `Writer`. A message is a row of blocks, of which the last may be open."""

    def __init__(
        self, answer_id: str, model: str, context: int, tools: Tools, *, shows_thinking: bool
    ) -> None:
        """`answer_id`: letters and digits; ids of calls are made from it.

        `context`: of the model, in tokens.
        """
        self._id = answer_id
        self._model = model
        self._context = context
        self._tools = tools
        self._shows_thinking = shows_thinking
        self._blocks: list[Json] = []
        self._pieces: list[str] = []
        self._is_open = False
        self._calls: dict[str, int] = {}
        self._started = Started(0, 0)
        self._finished: Finished | None = None

    def take(self, choice: int, event: AnswerEvent) -> list[Json]:
        del choice
        if isinstance(event, Started):
            self._started = event
            usage = _usage(Usage(event.prompt_tokens, event.cached_tokens, 0, 0))
            return [{"type": "message_start", "message": self._message([], usage)}, _PING]
        if isinstance(event, Prefilled):
            return [_PING]
        if isinstance(event, Reasoning):
            chunks = self._opened({"type": "thinking", "thinking": "", "signature": ""})
            self._pieces.append(event.text)
            if not self._shows_thinking:
                return chunks
            return [*chunks, self._delta({"type": "thinking_delta", "thinking": event.text})]
        if isinstance(event, Text):
            chunks = self._opened({"type": "text", "text": ""})
            self._pieces.append(event.text)
            return [*chunks, self._delta({"type": "text_delta", "text": event.text})]
        if isinstance(event, CallStarted):
            return self._call_started(event)
        if isinstance(event, CallArguments):
            return [self._delta({"type": "input_json_delta", "partial_json": event.text})]
        if isinstance(event, CallEnded):
            self._blocks[self._calls[event.call_id]]["input"] = dict(event.arguments)
            return self._closed()
        self._finished = event
        return [*self._closed(), self._message_delta(event)]

    def end(self) -> list[Json]:
        return [{"type": "message_stop"}]

    def failed(self, error: ApiError) -> list[Json]:
        return [body_of(error, "anthropic")]

    def whole(self) -> Json:
        assert self._finished is not None, "an answer is shown before its end"
        return {**self._message(self._blocks, _usage(self._finished.usage)), **self._ending(self._finished)}

    def frame(self, chunk: Json) -> bytes:
        return named_frame(chunk)

    def waiting(self) -> bytes:
        return named_frame(_PING)

    def last(self) -> bytes:
        return b""

    def _opened(self, block: Json) -> list[Json]:
        """Go on with a block of this type, or begin one."""
        if self._is_open and self._blocks[-1]["type"] == block["type"]:
            return []
        chunks = self._closed()
        self._blocks.append(block)
        self._is_open = True
        shown = dict(block)
        return [
            *chunks,
            {"type": "content_block_start", "index": len(self._blocks) - 1, "content_block": shown},
        ]

    def _closed(self) -> list[Json]:
        if not self._is_open:
            return []
        block, text = self._blocks[-1], "".join(self._pieces)
        chunks = []
        if block["type"] == "thinking":
            mark = signature(text) if self._shows_thinking else sealed(text)
            block |= {"thinking": text if self._shows_thinking else "", "signature": mark}
            chunks.append(self._delta({"type": "signature_delta", "signature": mark}))
        elif block["type"] == "text":
            block["text"] = text
        self._pieces.clear()
        self._is_open = False
        return [*chunks, {"type": "content_block_stop", "index": len(self._blocks) - 1}]

    def _call_started(self, event: CallStarted) -> list[Json]:
        chunks = self._closed()
        block = {
            "type": "tool_use",
            "id": f"toolu_{self._id}_{len(self._calls)}",
            "name": self._tools.get(event.name).name,
            "input": {},
        }
        chunks += self._opened(block)
        self._calls[event.call_id] = len(self._blocks) - 1
        return chunks

    def _delta(self, delta: Json) -> Json:
        return {"type": "content_block_delta", "index": len(self._blocks) - 1, "delta": delta}

    def _message_delta(self, finished: Finished) -> Json:
        return {
            "type": "message_delta",
            "delta": self._ending(finished),
            "usage": _usage(finished.usage),
        }

    def _ending(self, finished: Finished) -> dict[str, Any]:
        reason = STOP_REASONS[finished.reason]
        usage = finished.usage
        if finished.reason == "length" and usage.prompt_tokens + usage.completion_tokens >= self._context:
            reason = "model_context_window_exceeded"
        return {"stop_reason": reason, "stop_sequence": finished.stop_text}

    def _message(self, blocks: list[Json], usage: Json) -> Json:
        return {
            "id": f"msg_{self._id}",
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": blocks,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }


def _usage(usage: Usage) -> Json:
    """Tokens as Anthropic counts them: what the cache had is not part of `input_tokens`.

    Nobody is billed for writing to the cache, so that what is written counts as input.
    """
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    }
