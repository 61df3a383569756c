"""What a request gets back, in order of time, whichever API it came by."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from orchestrator.serving.request import Conversation, GenerationRequest

FinishReason = Literal["stop", "stop_text", "length", "tool_calls", "loop", "shutdown", "form", "lost"]
"""Why an answer ended.

"stop" is the model's own end; "stop_text" one of the request's texts; "length" its `max_tokens` or the
context; "tool_calls" an end with calls in it; "loop" repetition that could not be broken; "shutdown" a server
that stops; "form" a form that takes too much work to be followed; "lost" a cluster that cannot compute now,
so that the same request may be sent again.
"""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A chosen token.

    Attributes:
        text: of this token alone; `data`: its bytes.
        logprob: natural logarithm of its probability, after temperature and before tokens are left out.
        top: the likeliest tokens: (text, bytes, logprob), best first.
    """

    token_id: int
    text: str
    data: bytes
    logprob: float
    top: tuple[tuple[str, bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Started:
    """The prompt was taken in hand: its tokens, and how many of them other requests had left in the cache."""

    prompt_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Prefilled:
    """So many of the prompt's tokens are computed by now."""

    tokens: int


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of the text before the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer.

    `logprobs`: of the tokens that became text with it; reasoning and tool calls have none.
    """

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class CallStarted:
    """A tool call begins. `call_id` is ours, unique in the answer."""

    call_id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A piece of the JSON text of a call's arguments."""

    call_id: str
    text: str


@dataclass(frozen=True, slots=True)
class CallEnded:
    """`arguments`: all of them, typed by the tool's schema."""

    call_id: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a request.

    `drafted`, `accepted`: drafts of the MTP layers.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    drafted: int = 0
    accepted: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of every answer. `stop_text`: the request's text that was found, for that reason."""

    reason: FinishReason
    usage: Usage
    stop_text: str | None = None
    message: str = ""


AnswerEvent = Started | Prefilled | Reasoning | Text | CallStarted | CallArguments | CallEnded | Finished


class Refused(Exception):
    """A request that is not taken.

    Attributes:
        kind: "invalid": the request is at fault; "too_long": its prompt is over the context or the memory for
            keys and values; "busy": too much waits already; "unavailable": the cluster lacks boxes.
        retry_after_s: when it may be worth another try; None for never.
        field: of a request that is at fault: "prompt", "output", "tool_choice", "ignore_eos" or "logit_bias";
            "tools." and the name of a tool; "" where nobody knows.
    """

    def __init__(
        self,
        kind: Literal["invalid", "too_long", "busy", "unavailable"],
        message: str,
        retry_after_s: float | None = None,
        *,
        field: str = "",
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.retry_after_s = retry_after_s
        self.field = field


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The model that is served.

    `context`: the most tokens of prompt and answer together; `created_s`: when its file was written.
    """

    name: str
    context: int
    created_s: int


class Engine(Protocol):
    """Answers requests; the APIs know nothing else of what runs the model."""

    @property
    def model(self) -> ModelInfo: ...

    async def count_tokens(self, prompt: Conversation | str | Sequence[int]) -> int:
        """Of a prompt as the model would see it; raises Refused."""
        ...

    def answer(
        self, requests: Sequence[GenerationRequest]
    ) -> AbstractAsyncContextManager[AsyncIterator[tuple[int, AnswerEvent]]]:
        """Answer what one client asks for at once: events as they come, each with its request's index.

        Entering takes all of the requests, or raises Refused and takes none. Leaving ends those that have not
        ended, and frees what they hold. The events may end with Refused: a request that waits is given up, or
        the engine failed.
        """
        ...
