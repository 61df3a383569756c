"""The engine of a server: one thread that runs the model, and answers for any number of tasks."""

from __future__ import annotations

import asyncio
import itertools
import logging
import queue
import secrets
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from orchestrator.model.mtp import MtpDrafter
from orchestrator.model.step35 import Step35Model
from orchestrator.scheduler import Scheduler
from orchestrator.scheduling.kv_budget import KvBudget
from orchestrator.scheduling.limits import Limits
from orchestrator.scheduling.native import MeasuredCosts
from orchestrator.serving.answer import AnswerEvent, Finished, ModelInfo, Refused
from orchestrator.serving.prompts import Prompt, Prompts, has_form
from orchestrator.serving.request import Conversation, GenerationRequest
from orchestrator.serving.runner import Asked, Runner
from orchestrator.serving.state import ServerState
from orchestrator.serving.state_of import Sources, state_of
from orchestrator.tokenizer import Tokenizer
from placement.files.quote import first_line
from placement.pass_costs import PassCosts
from workers.gpu.errors import DeviceLost

if TYPE_CHECKING:
    from orchestrator.session import Session

_log = logging.getLogger(__name__)
_FORM_THREADS, _PROMPT_THREADS = 2, 4
"""So many requests with forms are made ready at once, and so many others. One may take seconds, and nobody
else is to wait for it, nor who watches."""
_IDLE_S = 1.0
"""Without work: until what the server tells of itself is looked at again."""
_STATE_S = 0.5
"""At work: the same."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Of one engine.

    Attributes:
        name: the model's, as clients see it.
        created_s: when its file was written, seconds since 1970.
        limits: of requests and passes.
        costs: predicted for passes.
        most_drafts: of a sequence in a step.
    """

    name: str
    created_s: int
    limits: Limits
    costs: PassCosts
    most_drafts: int = 0


class ModelEngine:
    """Answers requests with a loaded model: an `Engine`, and a `StateSource`.

    A `with` block of it runs the thread. On the way out answers under way end for "shutdown".
    """

    def __init__(self, session: Session, tokenizer: Tokenizer, settings: EngineSettings) -> None:
        model: Step35Model = session.head
        self._session = session
        self._settings = settings
        self._tokenizer = tokenizer
        self._prompts = Prompts(tokenizer, model.config.vocab_size, model.config.eos_token_ids)
        pass_rows = settings.limits.pass_rows
        self._drafter = MtpDrafter(model, settings.most_drafts, pass_rows) if settings.most_drafts else None
        self._costs = MeasuredCosts(settings.costs)
        self._context = min(settings.limits.context, self._kv().most_positions(settings.limits.context))
        self._runner = self._new_runner()
        self._sources = Sources(session, settings.name, time.monotonic())
        self._state = state_of(self._runner, self._sources, time.monotonic())
        self._state_s = 0.0
        self._form_threads = ThreadPoolExecutor(_FORM_THREADS, thread_name_prefix="forms")
        self._prompt_threads = ThreadPoolExecutor(_PROMPT_THREADS, thread_name_prefix="prompts")
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._numbers = itertools.count()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._is_stopping = False

    def __enter__(self) -> ModelEngine:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        def stop() -> None:
            self._is_stopping = True

        self._inbox.put(stop)
        self._thread.join()
        for threads in (self._form_threads, self._prompt_threads):
            threads.shutdown(wait=False, cancel_futures=True)

    @property
    def model(self) -> ModelInfo:
        """See `Engine.model`."""
        settings = self._settings
        return ModelInfo(settings.name, self._context, settings.created_s)

    def state(self) -> ServerState:
        """See `StateSource.state`."""
        return self._state

    def note(self, text: str) -> None:
        """Something happened that people should see; from any thread."""
        self._sources.note(text, time.monotonic())

    def recent(self) -> NDArray[np.uint16]:
        """Experts of the newest tokens, uint16 [num_tokens, num_moe_layers, top_k]; from any thread."""
        return self._sources.recent()

    async def count_tokens(self, prompt: Conversation | str | Sequence[int]) -> int:
        """See `Engine.count_tokens`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._prompt_threads, self._prompts.count, prompt)

    @asynccontextmanager
    async def answer(
        self, requests: Sequence[GenerationRequest]
    ) -> AsyncGenerator[AsyncGenerator[tuple[int, AnswerEvent]]]:
        """See `Engine.answer`; raises RuntimeError outside of the `with` block."""
        if not self._thread.is_alive():
            raise RuntimeError("the engine has ended, or has not begun")
        loop = asyncio.get_running_loop()
        told: asyncio.Queue[tuple[int, AnswerEvent | Refused]] = asyncio.Queue()

        def sink(index: int, event: AnswerEvent | Refused) -> None:
            # A loop that was closed has nobody left who reads.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(told.put_nowait, (index, event))

        asked = [
            Asked(next(self._numbers), request, prompt, partial(sink, index))
            for index, (request, prompt) in enumerate(
                zip(requests, await self._prompts_of(requests), strict=True)
            )
        ]

        def cancel() -> None:
            for one in asked:
                self._runner.cancel(one.number)

        try:
            await self._ask(lambda: self._runner.submit(asked))
            async with aclosing(_events(told, len(asked))) as events:
                yield events
        finally:
            self._inbox.put(cancel)

    async def _prompts_of(self, requests: Sequence[GenerationRequest]) -> list[Prompt]:
        prefixes = [f"call_{secrets.token_hex(6)}_" for _ in requests]
        threads = self._form_threads if any(map(has_form, requests)) else self._prompt_threads
        try:
            return await asyncio.get_running_loop().run_in_executor(
                threads, self._prompts.of_all, requests, prefixes
            )
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # The threads are gone.
            raise _stops() from None

    async def _ask(self, submit: Callable[[], None]) -> None:
        """Have requests taken by the model's thread; raises Refused where they are not."""
        taken: Future[None] = Future()

        def take() -> None:
            if not taken.set_running_or_notify_cancel():
                # Its client has left.
                return
            try:
                if self._is_stopping:
                    raise _stops()
                submit()
            except Refused as refusal:
                taken.set_exception(refusal)
            except Exception as error:
                _log.exception("a request could not be taken")
                taken.set_exception(Refused("unavailable", f"the server failed: {first_line(error)}", 1.0))
            else:
                taken.set_result(None)

        self._inbox.put(take)
        taking = asyncio.wrap_future(taken)
        try:
            while not taking.done():
                await asyncio.wait([taking], timeout=_IDLE_S)
                if not (taking.done() or self._thread.is_alive()):
                    raise _stops()
            taking.result()
        finally:
            taking.cancel()

    def _kv(self) -> KvBudget:
        settings = self._settings
        return KvBudget(tuple(self._session.head.kv_sizes(settings.most_drafts)), settings.limits.pass_rows)

    def _new_runner(self) -> Runner:
        settings = self._settings
        return Runner(
            self._session.head,
            self._drafter,
            self._tokenizer,
            self._prompts.budget_tokens,
            Scheduler(settings.limits, self._kv(), self._costs, settings.most_drafts),
            time.monotonic,
            lambda: self._session.standing().view.is_complete,
        )

    def _run(self) -> None:
        wait_s: float | None = None
        while not self._is_stopping:
            self._read(wait_s)
            try:
                wait_s = self._runner.turn()
            except DeviceLost as error:
                self._card_lost(error)
                wait_s = 0.0
            except Exception as error:
                _log.exception("the model's thread failed, and goes on with other requests")
                self._begin_anew(error)
                wait_s = 0.0
            self._look()
        self._runner.end_all("shutdown")
        self._read(0.0)
        self._runner.prefix.close()
        self._sources.close()

    def _look(self) -> None:
        """Tell what is the case, from time to time."""
        now_s = time.monotonic()
        if now_s - self._state_s < _STATE_S:
            return
        self._state_s = now_s
        try:
            self._state = state_of(self._runner, self._sources, now_s)
        except Exception:
            _log.exception("what the server does cannot be told")

    def _begin_anew(self, error: Exception) -> None:
        """End every request and forget all that is kept: nobody knows what of it is right."""
        failed = self._runner
        for live in failed.live.values():
            live.sink(Refused("unavailable", f"the server failed: {first_line(error)}", 1.0))
            live.sequence.close()
        failed.live.clear()
        failed.prefix.close()
        self._runner = self._new_runner()
        self._runner.counts = failed.counts

    def _read(self, wait_s: float | None) -> None:
        """Do what was asked for; wait so long for the first of it."""
        timeout_s = _IDLE_S if wait_s is None else min(wait_s, _IDLE_S)
        try:
            message = self._inbox.get(timeout=timeout_s) if timeout_s > 0 else self._inbox.get_nowait()
            while True:
                self._do(message)
                message = self._inbox.get_nowait()
        except queue.Empty:
            pass

    def _do(self, message: Callable[[], None]) -> None:
        try:
            message()
        except Exception:
            # One request's fault; the thread serves all others.
            _log.exception("a request could not be taken or ended")

    def _card_lost(self, error: DeviceLost) -> None:
        """The files are mapped still, so the CPU computes the head from now on."""
        if self._session.without_card(error):
            self._runner.forget_caches(self._kv())
        else:
            self._runner.end_all("lost", first_line(error))


def _stops() -> Refused:
    return Refused("unavailable", "the server stops", 30.0)


async def _events(
    told: asyncio.Queue[tuple[int, AnswerEvent | Refused]], num_answers: int
) -> AsyncGenerator[tuple[int, AnswerEvent]]:
    """What so many answers are told, until all have ended."""
    while num_answers:
        index, event = await told.get()
        if isinstance(event, Refused):
            raise event
        num_answers -= isinstance(event, Finished)
        yield index, event
