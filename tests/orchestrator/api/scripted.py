"""An engine that plays scripts: events in order, with waits between them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager

from orchestrator.serving.answer import (
    AnswerEvent,
    CallArguments,
    CallEnded,
    CallStarted,
    Finished,
    FinishReason,
    ModelInfo,
    Reasoning,
    Refused,
    Started,
    Text,
    TokenLogprob,
    Usage,
)
from orchestrator.serving.request import Conversation, GenerationRequest

Step = AnswerEvent | float | asyncio.Event | Exception
"""A number is a wait in seconds; an event of asyncio is waited for; an exception is raised."""

Script = Sequence[Step]

_Said = tuple[int, AnswerEvent] | Exception | None
"""An event of the script of that index; an error; or a script's end."""

MODEL = ModelInfo("scripted", context=4096, created_s=1_700_000_000)
USAGE = Usage(prompt_tokens=12, cached_tokens=5, completion_tokens=7, reasoning_tokens=3)
STARTED = Started(USAGE.prompt_tokens, USAGE.cached_tokens)


def finished(reason: FinishReason = "stop", stop_text: str | None = None, message: str = "") -> Finished:
    return Finished(reason, USAGE, stop_text, message)


def logprob(text: str, value: float = -0.5) -> TokenLogprob:
    top = ((text, text.encode(), value), ("other", b"other", -2.0))
    return TokenLogprob(7, text, text.encode(), value, top)


HELLO: Script = (STARTED, Text("Hel", (logprob("Hel"),)), Text("lo", (logprob("lo"),)), finished())
THOUGHT: Script = (STARTED, Reasoning("let me "), Reasoning("think"), Text("42"), finished())
CALL: Script = (
    STARTED,
    Reasoning("a tool"),
    CallStarted("0", "weather"),
    CallArguments("0", '{"city": '),
    CallArguments("0", '"Oslo"}'),
    CallEnded("0", {"city": "Oslo"}),
    finished("tool_calls"),
)
TWO_CALLS: Script = (
    *CALL[:-1],
    CallStarted("1", "weather"),
    CallArguments("1", '{"city": "Rome"}'),
    CallEnded("1", {"city": "Rome"}),
    finished("tool_calls"),
)
PATCH: Script = (
    STARTED,
    CallStarted("0", "apply_patch"),
    CallArguments("0", '{"input": "*** Begin\\n'),
    CallArguments("0", '*** End"}'),
    CallEnded("0", {"input": "*** Begin\n*** End"}),
    finished("tool_calls"),
)


class Scripted:
    """Fulfils `Engine`.

    Attributes:
        requests: all that came.
        taking: what happens before requests are taken: waits, or a refusal.
        open: answers under way.
        closed: answers that were ended before they had finished.
    """

    def __init__(self, script: Script | Callable[[GenerationRequest], Script] = HELLO) -> None:
        self.script = script
        self.taking: Script = ()
        self.requests: list[GenerationRequest] = []
        self.counted: list[Conversation | str | Sequence[int]] = []
        self.open = 0
        self.closed = 0

    @property
    def model(self) -> ModelInfo:
        return MODEL

    async def count_tokens(self, prompt: Conversation | str | Sequence[int]) -> int:
        self.counted.append(prompt)
        step = self.script[0] if isinstance(self.script, Sequence) else None
        if isinstance(step, Refused):
            raise step
        return 12

    @asynccontextmanager
    async def answer(
        self, requests: Sequence[GenerationRequest]
    ) -> AsyncGenerator[AsyncGenerator[tuple[int, AnswerEvent]]]:
        self.requests += requests
        async for _ in _played(self.taking):
            raise AssertionError("no event comes before all are taken")
        said: asyncio.Queue[_Said] = asyncio.Queue(1)
        tasks = [
            asyncio.create_task(self._play(index, request, said)) for index, request in enumerate(requests)
        ]
        try:
            async with aclosing(_said_by(said, len(tasks))) as events:
                yield events
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _play(self, index: int, request: GenerationRequest, said: asyncio.Queue[_Said]) -> None:
        self.open += 1
        has_ended = False
        try:
            async for event in _played(self.script(request) if callable(self.script) else self.script):
                has_ended = isinstance(event, Finished)
                await said.put((index, event))
            await said.put(None)
        except Exception as error:
            await said.put(error)
        finally:
            self.open -= 1
            self.closed += not has_ended


async def _played(script: Script) -> AsyncGenerator[AnswerEvent]:
    for step in script:
        if isinstance(step, asyncio.Event):
            await step.wait()
        elif isinstance(step, float):
            await asyncio.sleep(step)
        elif isinstance(step, Exception):
            raise step
        else:
            yield step


async def _said_by(said: asyncio.Queue[_Said], scripts: int) -> AsyncGenerator[tuple[int, AnswerEvent]]:
    """What so many scripts say, until all are at their end."""
    while scripts:
        item = await said.get()
        if isinstance(item, Exception):
            raise item
        if item is None:
            scripts -= 1
        else:
            yield item
