"""OpenAI's responses, streamed and whole, from the engine's events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orchestrator.api.carried import sealed
from orchestrator.api.custom_input import CustomInput
from orchestrator.api.errors import ApiError
from orchestrator.api.tools import Tools
from orchestrator.api.writer import COMMENT, Json, logprobs_of, named_frame
from orchestrator.serving.answer import (
    AnswerEvent,
    CallArguments,
    CallEnded,
    CallStarted,
    Finished,
    Reasoning,
    Started,
    Text,
    TokenLogprob,
    Usage,
)

_INCOMPLETE = {
    "length": "max_output_tokens",
    "loop": "loop",
    "shutdown": "shutdown",
    "form": "form",
    "lost": "lost",
}


class ResponseWriter:
    """Fulfils `Writer`. A response is a row of items, of which the last may be open."""

    def __init__(
        self,
        answer_id: str,
        created_s: int,
        model: str,
        echo: Json,
        tools: Tools,
        clock: Callable[[], int],
        *,
        with_encrypted: bool,
        with_logprobs: bool,
    ) -> None:
        """`answer_id`: letters and digits; ids of items are made from it. `echo`: fields of the request."""
        self._id = answer_id
        self._head: Json = {
            "id": f"resp_{answer_id}",
            "object": "response",
            "created_at": created_s,
            "model": model,
            "background": False,
            **echo,
        }
        self._tools = tools
        self._clock = clock
        self._with_encrypted = with_encrypted
        self._with_logprobs = with_logprobs
        self._sequence = 0
        self._output: list[Json] = []
        self._is_open = False
        self._pieces: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._custom: CustomInput | None = None
        self._finished: Finished | None = None
        self._num_calls = 0

    def take(self, choice: int, event: AnswerEvent) -> list[Json]:
        del choice
        if isinstance(event, Started):
            shown = self._response("in_progress", [])
            return [self._event(f"response.{name}", response=shown) for name in ("created", "in_progress")]
        if isinstance(event, Reasoning):
            return [*self._reasoning_opened(), self._piece("response.reasoning_text.delta", event.text)]
        if isinstance(event, Text):
            chunks = self._message_opened()
            logprobs = logprobs_of(event.logprobs) if self._with_logprobs else []
            self._logprobs += event.logprobs
            return [*chunks, self._piece("response.output_text.delta", event.text, logprobs=logprobs)]
        if isinstance(event, CallStarted):
            return self._call_opened(event)
        if isinstance(event, CallArguments):
            if self._custom is not None:
                return self._custom_piece(self._custom.take(event.text))
            return [self._piece("response.function_call_arguments.delta", event.text)]
        if isinstance(event, CallEnded):
            return self._call_ended(event)
        if isinstance(event, Finished):
            self._finished = event
            return self._closed("completed" if self._is_complete() else "incomplete")
        return []

    def end(self) -> list[Json]:
        kind = "completed" if self._is_complete() else "incomplete"
        return [self._event(f"response.{kind}", response=self.whole())]

    def failed(self, error: ApiError) -> list[Json]:
        if error.status == 429:
            code = "rate_limit_exceeded"
        elif error.status < 500:
            code = error.code or "invalid_prompt"
        else:
            code = "server_error"
        shown = self._response("failed", [*self._output[: len(self._output) - self._is_open]])
        shown["error"] = {"code": code, "message": error.message}
        return [self._event("response.failed", response=shown)]

    def whole(self) -> Json:
        assert self._finished is not None, "an answer is shown before its end"
        response = self._response("completed" if self._is_complete() else "incomplete", self._output)
        if not self._is_complete():
            response["incomplete_details"] = {"reason": _INCOMPLETE[self._finished.reason]}
        response["completed_at"] = self._clock()
        response["usage"] = _usage(self._finished.usage)
        return response

    def frame(self, chunk: Json) -> bytes:
        return named_frame(chunk)

    def waiting(self) -> bytes:
        return COMMENT

    def last(self) -> bytes:
        return b""

    @property
    def _item(self) -> Json:
        return self._output[-1]

    @property
    def _place(self) -> Json:
        return {"item_id": self._item["id"], "output_index": len(self._output) - 1}

    def _is_complete(self) -> bool:
        return self._finished is not None and self._finished.reason not in _INCOMPLETE

    def _response(self, status: str, output: list[Json]) -> Json:
        return {
            **self._head,
            "status": status,
            "output": output,
            "error": None,
            "incomplete_details": None,
            "usage": None,
        }

    def _event(self, kind: str, **fields: Any) -> Json:
        event = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return event

    def _piece(self, kind: str, text: str, **fields: Any) -> Json:
        self._pieces.append(text)
        place = self._place if self._item["type"].endswith("call") else {**self._place, "content_index": 0}
        return self._event(kind, **place, delta=text, **fields)

    def _opened(self, item: Json) -> list[Json]:
        chunks = self._closed("completed")
        self._output.append(item)
        self._is_open = True
        place = {"output_index": len(self._output) - 1}
        return [*chunks, self._event("response.output_item.added", **place, item=dict(item))]

    def _reasoning_opened(self) -> list[Json]:
        if self._is_open and self._item["type"] == "reasoning":
            return []
        item = {"type": "reasoning", "id": self._item_id("rs"), "summary": [], "content": []}
        chunks = self._opened({**item, "status": "in_progress"})
        return [*chunks, self._part("added", {"type": "reasoning_text", "text": ""})]

    def _message_opened(self) -> list[Json]:
        if self._is_open and self._item["type"] == "message":
            return []
        item = {"type": "message", "id": self._item_id("msg"), "role": "assistant", "content": []}
        chunks = self._opened({**item, "status": "in_progress"})
        return [*chunks, self._part("added", _output_text("", []))]

    def _call_opened(self, event: CallStarted) -> list[Json]:
        tool = self._tools.get(event.name)
        item = {"call_id": f"call_{self._id}_{self._num_calls}", "name": tool.name, "status": "in_progress"}
        self._num_calls += 1
        if tool.namespace is not None:
            item["namespace"] = tool.namespace
        self._custom = CustomInput() if tool.is_custom else None
        if tool.is_custom:
            return self._opened(
                {"type": "custom_tool_call", "id": self._item_id("ctc"), **item, "input": ""},
            )
        return self._opened({"type": "function_call", "id": self._item_id("fc"), **item, "arguments": ""})

    def _call_ended(self, event: CallEnded) -> list[Json]:
        last = [] if self._custom is None else self._custom_piece(self._custom.end(event.arguments))
        return [*last, *self._closed("completed")]

    def _custom_piece(self, text: str) -> list[Json]:
        return [self._piece("response.custom_tool_call_input.delta", text)] if text else []

    def _item_id(self, prefix: str) -> str:
        return f"{prefix}_{self._id}_{len(self._output)}"

    def _part(self, moment: str, part: Json) -> Json:
        return self._event(f"response.content_part.{moment}", **self._place, content_index=0, part=part)

    def _closed(self, status: str) -> list[Json]:
        """End the open item, whose pieces are its text by now."""
        if not self._is_open:
            return []
        item, text, place = self._item, "".join(self._pieces), self._place
        chunks = []
        if item["type"] == "reasoning":
            part: Json = {"type": "reasoning_text", "text": text}
            item["content"] = [part]
            if self._with_encrypted:
                item["encrypted_content"] = sealed(text)
            chunks.append(self._event("response.reasoning_text.done", **place, content_index=0, text=text))
            chunks.append(self._part("done", part))
        elif item["type"] == "message":
            logprobs = logprobs_of(self._logprobs) if self._with_logprobs else []
            part = _output_text(text, logprobs)
            item["content"] = [part]
            done = {**place, "content_index": 0, "text": text, "logprobs": logprobs}
            chunks += [self._event("response.output_text.done", **done), self._part("done", part)]
        elif item["type"] == "function_call":
            item["arguments"] = text
            done = {**place, "name": item["name"], "arguments": text}
            chunks.append(self._event("response.function_call_arguments.done", **done))
        else:
            item["input"] = text
            chunks.append(self._event("response.custom_tool_call_input.done", **place, input=text))
        item["status"] = status
        self._pieces.clear()
        self._logprobs.clear()
        self._is_open = False
        index = place["output_index"]
        return [*chunks, self._event("response.output_item.done", output_index=index, item=item)]


def _output_text(text: str, logprobs: list[Json]) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _usage(usage: Usage) -> Json:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
