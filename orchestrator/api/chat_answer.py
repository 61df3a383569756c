"""Chat completions, streamed and whole, from the engine's events."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from orchestrator.api.custom_input import CustomInput
from orchestrator.api.errors import ApiError, body_of
from orchestrator.api.tools import Tools
from orchestrator.api.writer import COMMENT, Json, data_frame, logprobs_of, summed
from orchestrator.serving.answer import (
    AnswerEvent,
    CallArguments,
    CallEnded,
    CallStarted,
    Finished,
    FinishReason,
    Reasoning,
    Started,
    Text,
    TokenLogprob,
    Usage,
)

# OpenAI has no words for an answer that ended early for other reasons: it was cut, as by a limit.
FINISH_REASONS: dict[FinishReason, str] = {
    "stop": "stop",
    "stop_text": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "loop": "length",
    "shutdown": "length",
    "form": "length",
    "lost": "length",
}


@dataclass(slots=True)
class _Call:
    call_id: str
    name: str
    custom: CustomInput | None
    arguments: str = ""


@dataclass(slots=True)
class _Choice:
    """What one of the answers has said so far."""

    reasoning: list[str] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    calls: dict[str, _Call] = field(default_factory=dict)
    finished: Finished | None = None


class ChatWriter:
    """Fulfils `Writer`."""

    def __init__(
        self,
        answer_id: str,
        created_s: int,
        model: str,
        tools: Tools,
        num_choices: int,
        *,
        with_logprobs: bool,
        usage_at_end: bool,
    ) -> None:
        """`answer_id`: letters and digits; ids of calls are made from it."""
        self._id = answer_id
        self._head: Json = {"id": f"chatcmpl-{answer_id}", "created": created_s, "model": model}
        self._tools = tools
        self._choices = [_Choice() for _ in range(num_choices)]
        self._with_logprobs = with_logprobs
        self._usage_at_end = usage_at_end

    def take(self, choice: int, event: AnswerEvent) -> list[Json]:
        said = self._choices[choice]
        if isinstance(event, Started):
            return [self._delta(choice, {"role": "assistant", "content": ""})]
        if isinstance(event, Reasoning):
            said.reasoning.append(event.text)
            return [self._delta(choice, _reasoning(event.text))]
        if isinstance(event, Text):
            said.text.append(event.text)
            said.logprobs += event.logprobs
            return [self._delta(choice, {"content": event.text}, event.logprobs)]
        if isinstance(event, CallStarted):
            return [self._delta(choice, self._call_started(choice, event))]
        if isinstance(event, CallArguments):
            custom = said.calls[event.call_id].custom
            text = event.text if custom is None else custom.take(event.text)
            return self._added(choice, event.call_id, text)
        if isinstance(event, CallEnded):
            custom = said.calls[event.call_id].custom
            return [] if custom is None else self._added(choice, event.call_id, custom.end(event.arguments))
        if isinstance(event, Finished):
            said.finished = event
            return [self._chunk([{**self._choice(choice, {}), **_ending(event)}])]
        return []

    def end(self) -> list[Json]:
        return [{**self._chunk([]), "usage": usage_of(self._usage())}] if self._usage_at_end else []

    def failed(self, error: ApiError) -> list[Json]:
        return [body_of(error, "openai")]

    def whole(self) -> Json:
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [
                {
                    "index": index,
                    "message": _message(choice),
                    "logprobs": {"content": logprobs_of(choice.logprobs)} if self._with_logprobs else None,
                    **_ending(choice.finished),
                }
                for index, choice in enumerate(self._choices)
            ],
            "usage": usage_of(self._usage()),
        }

    def frame(self, chunk: Json) -> bytes:
        return data_frame(chunk)

    def waiting(self) -> bytes:
        return COMMENT

    def last(self) -> bytes:
        return b"data: [DONE]\n\n"

    def _usage(self) -> Usage:
        return summed([choice.finished.usage for choice in self._choices if choice.finished is not None])

    def _call_started(self, choice: int, event: CallStarted) -> Json:
        calls = self._choices[choice].calls
        index = len(calls)
        tool = self._tools.get(event.name)
        custom = CustomInput() if tool.is_custom else None
        made = _Call(f"call_{self._id}_{choice}_{index}", tool.name, custom)
        calls[event.call_id] = made
        return {"tool_calls": [{"index": index, **_shown(made)}]}

    def _added(self, choice: int, call_id: str, text: str) -> list[Json]:
        """More of a call's arguments, or of a custom tool's text."""
        if not text:
            return []
        said = self._choices[choice]
        said.calls[call_id].arguments += text
        return [self._delta(choice, _piece(said, call_id, text))]

    def _delta(self, choice: int, delta: Json, logprobs: tuple[TokenLogprob, ...] = ()) -> Json:
        return self._chunk([self._choice(choice, delta, logprobs)])

    def _choice(self, index: int, delta: Json, logprobs: tuple[TokenLogprob, ...] = ()) -> Json:
        shown = {"content": logprobs_of(logprobs)} if self._with_logprobs and logprobs else None
        return {"index": index, "delta": delta, "logprobs": shown, "finish_reason": None}

    def _chunk(self, choices: list[Json]) -> Json:
        chunk = {**self._head, "object": "chat.completion.chunk", "choices": choices}
        return {**chunk, "usage": None} if self._usage_at_end else chunk


def usage_of(usage: Usage) -> Json:
    """Tokens as OpenAI counts them, and what our drafts were."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "drafted_tokens": usage.drafted,
            "accepted_tokens": usage.accepted,
        },
    }


def _ending(finished: Finished | None) -> Json:
    """`finish_detail` is our own word for it, and `stop_reason` the text of the request that was found."""
    assert finished is not None, "an answer is shown before its end"
    return {
        "finish_reason": FINISH_REASONS[finished.reason],
        "finish_detail": finished.reason,
        "stop_reason": finished.stop_text,
    }


def _reasoning(text: str) -> Json:
    # Clients look for the one or the other.
    return {"reasoning": text, "reasoning_content": text}


def _message(choice: _Choice) -> Json:
    text = "".join(choice.text)
    message: Json = {"role": "assistant", "content": text if text or not choice.calls else None}
    message |= {"refusal": None}
    if choice.reasoning:
        message |= _reasoning("".join(choice.reasoning))
    if choice.calls:
        message["tool_calls"] = [_shown(call) for call in choice.calls.values()]
    return message


def _shown(call: _Call) -> Json:
    if call.custom is not None:
        return {"id": call.call_id, "type": "custom", "custom": {"name": call.name, "input": call.arguments}}
    function: dict[str, Any] = {"name": call.name, "arguments": call.arguments}
    return {"id": call.call_id, "type": "function", "function": function}


def _piece(choice: _Choice, call_id: str, text: str) -> Json:
    index = list(choice.calls).index(call_id)
    if choice.calls[call_id].custom is not None:
        return {"tool_calls": [{"index": index, "type": "custom", "custom": {"input": text}}]}
    return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
