"""Draws answers from the engine: several at once, ended at once where nobody wants them any more."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from orchestrator.api.errors import ApiError, lost, refused, stopping, unexpected
from orchestrator.api.request_id import REQUEST_ID
from orchestrator.api.request_log import note_event
from orchestrator.api.writer import Writer
from orchestrator.serving.answer import (
    AnswerEvent,
    CallArguments,
    Engine,
    Finished,
    Reasoning,
    Refused,
    Started,
    Text,
    Usage,
)
from orchestrator.serving.request import GenerationRequest

logger = logging.getLogger(__name__)

# Events that may wait here for a client that reads slowly; the others wait in the engine, which writes on.
_MOST_WAITING = 256


@dataclass(frozen=True, slots=True)
class Quiet:
    """Nothing happened for a while."""


@dataclass(frozen=True, slots=True)
class _Failed:
    error: ApiError


_Said = tuple[int, AnswerEvent] | _Failed


@dataclass(slots=True)
class _Seen:
    """What came of one answer, for the case that we have to end it ourselves."""

    started: Started | None = None
    pieces: int = 0
    reasoning: int = 0
    is_finished: bool = False

    def note(self, event: AnswerEvent) -> None:
        if isinstance(event, Started):
            self.started = event
        elif isinstance(event, Reasoning):
            self.pieces += 1
            self.reasoning += 1
        elif isinstance(event, Text | CallArguments):
            self.pieces += 1
        elif isinstance(event, Finished):
            self.is_finished = True

    def ended(self) -> Finished:
        """An end by shutdown. Every piece was a token at least; the engine is not there to say more."""
        if self.started is None:
            raise stopping()
        usage = Usage(self.started.prompt_tokens, self.started.cached_tokens, self.pieces, self.reasoning)
        return Finished("shutdown", usage, message="the server is shutting down")


async def answers(
    engine: Engine,
    requests: Sequence[GenerationRequest],
    is_over: asyncio.Event,
    quiet_s: float,
    names: Mapping[str, str] = MappingProxyType({}),
) -> AsyncGenerator[tuple[int, AnswerEvent] | Quiet]:
    """Events of all the answers as they come, each with its answer's index.

    The engine takes all requests or none. Closing this ends all answers.

    Args:
        is_over: once set, what still runs is ended as by a shutdown.
        quiet_s: after so long without an event, `Quiet` is given.
        names: of fields, for errors; see `refused`.

    Raises:
        ApiError: a request was refused, or the cluster or the engine failed.
    """
    said: asyncio.Queue[_Said] = asyncio.Queue(_MOST_WAITING)
    pump = asyncio.create_task(_pump(engine, requests, said, names))
    over = asyncio.create_task(is_over.wait())
    coming: asyncio.Task[_Said] | None = None
    seen = [_Seen() for _ in requests]
    try:
        while not all(one.is_finished for one in seen):
            coming = coming or asyncio.create_task(said.get())
            done, _ = await asyncio.wait({coming, over}, timeout=quiet_s, return_when=asyncio.FIRST_COMPLETED)
            if coming in done:
                item = coming.result()
                coming = None
                if isinstance(item, _Failed):
                    raise item.error
                index, event = item
                note_event(event)
                _check(event, requests[index], names)
                seen[index].note(event)
                yield index, event
            elif over in done:
                for index, one in enumerate(seen):
                    if not one.is_finished:
                        end = one.ended()
                        note_event(end)
                        yield index, end
                return
            else:
                yield Quiet()
    finally:
        await _end([pump, over, *([coming] if coming else [])])


async def streamed(
    source: AsyncGenerator[tuple[int, AnswerEvent] | Quiet],
    writer: Writer,
    quiet_s: float,
    ended: Callable[[Writer], None] = lambda writer: None,
) -> AsyncGenerator[bytes]:
    """An answer as the bytes of a stream.

    Args:
        quiet_s: something is said at least so often, also where events have nothing to say.
        ended: told once all is there, before the client hears of the end.

    Raises:
        ApiError: before the first bytes; a later one is part of the stream.
    """
    now_s = asyncio.get_running_loop().time
    has_begun, said_s = False, now_s()
    async with aclosing(source):
        try:
            async for item in source:
                said = b""
                if not isinstance(item, Quiet):
                    said = b"".join(map(writer.frame, writer.take(*item)))
                if not said and (isinstance(item, Quiet) or now_s() - said_s >= quiet_s):
                    said = writer.waiting()
                if said:
                    has_begun, said_s = True, now_s()
                    yield said
            ended(writer)
            yield b"".join(map(writer.frame, writer.end())) + writer.last()
        except ApiError as error:
            if not has_begun:
                raise
            yield b"".join(map(writer.frame, writer.failed(error))) + writer.last()


async def whole(source: AsyncGenerator[tuple[int, AnswerEvent] | Quiet], writer: Writer) -> dict[str, Any]:
    """An answer in one piece.

    Raises:
        ApiError: it was refused, or broke off.
    """
    async with aclosing(source):
        async for item in source:
            if not isinstance(item, Quiet):
                writer.take(*item)
    return writer.whole()


def _check(event: AnswerEvent, request: GenerationRequest, names: Mapping[str, str]) -> None:
    """Raises ApiError for an end that is an error."""
    if isinstance(event, Finished) and event.reason == "lost":
        raise lost(event.message)
    if isinstance(event, Finished) and event.reason == "form":
        field = "tools" if request.output is None else "output"
        raise refused(Refused("invalid", event.message, field=field), names)


async def _pump(
    engine: Engine,
    requests: Sequence[GenerationRequest],
    said: asyncio.Queue[_Said],
    names: Mapping[str, str],
) -> None:
    """Put the answers' events into the queue, to the last or to the first error."""
    left = len(requests)
    try:
        async with engine.answer(requests) as events:
            async for index, event in events:
                await said.put((index, event))
                left -= isinstance(event, Finished)
        if left:
            logger.error("request %s: the engine ended an answer without saying why", REQUEST_ID.get())
            await said.put(_Failed(unexpected()))
    except Refused as refusal:
        await said.put(_Failed(refused(refusal, names)))
    except Exception:
        logger.exception("request %s: the engine failed to answer", REQUEST_ID.get())
        await said.put(_Failed(unexpected()))


async def _end(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    for task in tasks:
        with suppress(asyncio.CancelledError, Exception):
            await task
