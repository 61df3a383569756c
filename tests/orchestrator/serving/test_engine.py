"""The engine's thread and asyncio's tasks."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from orchestrator.one_box import plan_here
from orchestrator.run_memory import Demand
from orchestrator.scheduling.limits import Limits
from orchestrator.serving.answer import AnswerEvent, Finished, Refused, Started
from orchestrator.serving.engine import EngineSettings, ModelEngine
from orchestrator.serving.request import Conversation, GenerationRequest, OutputForm
from orchestrator.session import Session, open_session
from orchestrator.tokenizer import Tokenizer
from placement.pass_costs import costs_of_reading
from tests.forks.forks import Forks
from tests.orchestrator.api.serving import client, served
from tests.orchestrator.serving.served import MODEL, asking, chatting
from tests.workers.serving import wait_until
from workers.formats.open_model import open_model
from workers.memory.reservations import free_memory

T = TypeVar("T")
DEADLINE_S = 60


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    model = open_model(MODEL)
    demand = Demand(2048, num_drafts=3)
    plan = plan_here(model, "bfloat16", demand, free_memory([])).plan
    with open_session(model, plan, num_drafts=3, positions=2048) as session:
        yield session


@pytest.fixture
def engine(session: Session) -> Iterator[ModelEngine]:
    costs = costs_of_reading(session.head.config.shape(""), 16.0)
    settings = EngineSettings("tiny", 7, Limits(2048), costs, 3)
    with ModelEngine(session, Tokenizer.load(MODEL), settings) as engine:
        yield engine
    assert session.head.kv_pool.used_bytes == 0


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, DEADLINE_S))


async def events_of(engine: ModelEngine, request: GenerationRequest) -> list[AnswerEvent]:
    async with engine.answer([request]) as events:
        return [event async for _, event in events]


def test_tasks_get_their_own_answers(engine: ModelEngine) -> None:
    async def all_of_them() -> list[list[AnswerEvent]]:
        requests = [chatting(f"Hello {n}", max_tokens=20) for n in range(10)]
        return await asyncio.gather(*(events_of(engine, request) for request in requests))

    found = run(all_of_them())
    for events in found:
        assert isinstance(events[0], Started)
        assert isinstance(events[-1], Finished)
    state = engine.state()
    assert (state.model, state.lack) == ("tiny", "")
    assert sum(len(row) for row in state.places) == 5 * 288
    assert engine.model.context == 2048


def test_requests_with_forms_keep_no_others_waiting(engine: ModelEngine) -> None:
    slow = [
        OutputForm("grammar", f'start: {" | ".join(["x"] * 2000)}\nx: "a" | "b{number}"')
        for number in range(36)
    ]
    seen = list[str]()

    async def one(name: str, request: GenerationRequest) -> None:
        await events_of(engine, request)
        seen.append(name)

    async def all_of_them() -> None:
        forms = [one("form", replace(asking(max_tokens=1), output=form)) for form in slow]
        await asyncio.gather(*forms, one("free", asking(max_tokens=1)))

    run(all_of_them())
    assert seen.index("free") < 8


def test_a_task_that_leaves_ends_its_request(engine: ModelEngine, session: Session) -> None:
    async def leave() -> None:
        async with engine.answer([asking(max_tokens=1500, ignore_eos=True)]) as events:
            async for _, event in events:
                if not isinstance(event, Started):
                    return

    run(leave())
    (after,) = run(_gathered(engine, asking(max_tokens=3)))
    assert isinstance(after[-1], Finished)
    # Its end is told before its memory is given back.
    wait_until(lambda: session.head.kv_pool.used_bytes == 0)


async def _gathered(engine: ModelEngine, *requests: GenerationRequest) -> list[list[AnswerEvent]]:
    return await asyncio.gather(*(events_of(engine, request) for request in requests))


def test_requests_that_are_none_are_refused(engine: ModelEngine) -> None:
    for request, words in (
        (asking("word " * 3000), "context of 2,048 tokens"),
        (GenerationRequest("me", (5000,)), "vocabulary"),
        (
            chatting("Hello", tool_choice="nobody", tools=({"type": "function", "function": {"name": "a"}},)),
            "tools",
        ),
    ):
        with pytest.raises(Refused, match=words):
            run(events_of(engine, request))


@pytest.mark.parametrize("stream", [False, True])
def test_answers_find_a_place_together_or_the_request_fails_before_anything_is_sent(
    session: Session, stream: bool
) -> None:
    # Two run, and one waits: that is the part of a client that is alone.
    limits = Limits(2048, sequences=2, most_waiting=2)
    costs = costs_of_reading(session.head.config.shape(""), 16.0)
    settings = EngineSettings("tiny", 7, limits, costs)
    common = {"max_tokens": 4, "ignore_eos": True, "stream": stream}
    chat = {"messages": [{"role": "user", "content": "Hello"}], "reasoning_effort": "none", **common}
    routes: dict[str, Callable[[int], dict[str, Any]]] = {
        "/v1/chat/completions": lambda count: {**chat, "n": count},
        "/v1/completions": lambda count: {**common, "prompt": ["Once"] * count},
    }
    with (
        ModelEngine(session, Tokenizer.load(MODEL), settings) as engine,
        served(engine) as server,
        client(server) as http,
    ):
        scheduler = engine._runner.scheduler
        for path, asking_for in routes.items():
            never = http.post(path, json=asking_for(4))
            assert (never.status_code, "too many at once" in never.text) == (400, True)
            # Without boxes nobody runs.
            scheduler.cluster_lacks("den is gone", time.monotonic())
            refused = http.post(path, json=asking_for(3))
            assert (refused.status_code, int(refused.headers["retry-after"]) >= 1) == (429, True)
            assert refused.json()["error"]["type"] == "rate_limit_error"
            assert (scheduler.running, scheduler.waiting) == (0, 0)
            scheduler.cluster_is_back()
            taken = http.post(path, json=asking_for(3))
            assert taken.status_code == 200
            assert set(re.findall(r'"index": ?([0-9])', taken.text)) == {"0", "1", "2"}


def test_a_task_that_leaves_ends_all_that_it_asked_for(engine: ModelEngine, session: Session) -> None:
    async def leave() -> None:
        requests = [asking(max_tokens=1500, ignore_eos=True, choice=choice) for choice in range(10)]
        begun = set[int]()
        async with engine.answer(requests) as events:
            async for index, _ in events:
                begun.add(index)
                if len(begun) > 3:
                    return

    run(leave())
    wait_until(lambda: engine._runner.counts.totals({}).finished == {"cancelled": 10})
    wait_until(lambda: session.head.kv_pool.used_bytes == 0)


def test_a_task_that_leaves_before_its_requests_are_taken_leaves_nothing(engine: ModelEngine) -> None:
    began, go_on = threading.Event(), threading.Event()

    def keep_busy() -> None:
        began.set()
        assert go_on.wait(DEADLINE_S)

    async def leave() -> None:
        engine._inbox.put(keep_busy)
        async with engine.answer([asking(), asking(choice=1)]):
            raise AssertionError("nobody has taken them")

    async def leaving() -> None:
        task = asyncio.create_task(leave())
        await asyncio.to_thread(began.wait, DEADLINE_S)
        while engine._inbox.empty():
            await asyncio.sleep(0.005)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    run(leaving())
    go_on.set()
    (after,) = run(_gathered(engine, asking(max_tokens=3)))
    assert isinstance(after[-1], Finished)
    assert engine._runner.counts.totals({}).finished == {"length": 1}


def test_answers_to_one_prompt_have_it_rendered_and_their_form_compiled_once(
    engine: ModelEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = list[str]()

    def counted(name: str, of: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            done.append(name)
            return of(*given, **named)

        return call

    tokenizer = engine._prompts._tokenizer
    forms = engine._prompts._made_forms()
    monkeypatch.setattr(tokenizer, "chat_prompt", counted("render", tokenizer.chat_prompt))
    monkeypatch.setattr(forms, "_alone", counted("compile", forms._alone))
    first = replace(chatting("Hello", max_tokens=2), output=OutputForm("regex", "[a-f]{1,9}"))

    async def ask() -> list[tuple[int, AnswerEvent]]:
        requests = [replace(first, choice=choice) for choice in range(5)]
        async with engine.answer(requests) as events:
            return [item async for item in events]

    found = run(ask())
    assert sum(isinstance(event, Finished) for _, event in found) == 5
    assert sorted(done) == ["compile", "render"]


def test_a_server_that_stops_takes_nothing_and_leaves_nobody_waiting(session: Session) -> None:
    costs = costs_of_reading(session.head.config.shape(""), 16.0)
    engine = ModelEngine(session, Tokenizer.load(MODEL), EngineSettings("tiny", 7, Limits(2048), costs))
    began, go_on = threading.Event(), threading.Event()

    def stop() -> None:
        began.set()
        assert go_on.wait(DEADLINE_S)
        engine._is_stopping = True

    async def asked() -> str:
        task = asyncio.create_task(events_of(engine, asking()))
        while engine._inbox.empty():
            await asyncio.sleep(0.005)
        go_on.set()
        with pytest.raises(Refused) as caught:
            await task
        return caught.value.message

    async def asked_too_late(monkeypatch: pytest.MonkeyPatch) -> str:
        # Between the last look at the thread and the request, it has ended.
        monkeypatch.setattr(engine._thread, "is_alive", iter([True, False]).__next__)
        with pytest.raises(Refused) as caught:
            await events_of(engine, asking())
        return caught.value.message

    with engine:
        engine._inbox.put(stop)
        assert began.wait(DEADLINE_S)
        assert run(asked()) == "the server stops"
        engine._thread.join()
        with pytest.MonkeyPatch.context() as monkeypatch:
            assert run(asked_too_late(monkeypatch)) == "the server stops"


def test_a_request_that_cannot_be_taken_is_told_so(
    engine: ModelEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise KeyError("nobody knows why")

    with monkeypatch.context() as patched:
        patched.setattr(engine._runner, "submit", fails)
        with pytest.raises(Refused, match="nobody knows why") as caught:
            run(events_of(engine, asking()))
    assert caught.value.kind == "unavailable"
    (after,) = run(_gathered(engine, asking(max_tokens=3)))
    assert isinstance(after[-1], Finished)


def test_tokens_are_counted_as_the_model_sees_them(engine: ModelEngine) -> None:
    messages = ({"role": "user", "content": "Hello there"},)
    count = run(engine.count_tokens(Conversation(messages)))
    (events,) = run(_gathered(engine, chatting("Hello there", max_tokens=2)))
    assert events[0] == Started(count, 0)


def test_the_end_of_the_block_ends_answers(session: Session) -> None:
    costs = costs_of_reading(session.head.config.shape(""), 16.0)

    async def cut() -> list[AnswerEvent]:
        engine = ModelEngine(session, Tokenizer.load(MODEL), EngineSettings("tiny", 7, Limits(2048), costs))
        found: list[AnswerEvent] = []
        async with AsyncExitStack() as stack:
            with engine:
                asked = [asking(max_tokens=1500, ignore_eos=True)]
                events = await stack.enter_async_context(engine.answer(asked))
                found.append((await anext(events))[1])
            found += [event async for _, event in events]
        with pytest.raises(RuntimeError, match="has ended"):
            await events_of(engine, asking())
        return found

    last = run(cut())[-1]
    assert isinstance(last, Finished)
    assert last.reason == "shutdown"


def test_a_failure_of_the_thread_ends_what_runs_and_nothing_else(
    engine: ModelEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise KeyError("nobody knows why")

    async def hit() -> None:
        async with engine.answer([asking(max_tokens=1500, ignore_eos=True)]) as events:
            await anext(events)
            monkeypatch.setattr(engine._runner, "_tell", fails)
            with pytest.raises(Refused, match="nobody knows why"):
                async for _ in events:
                    pass

    run(hit())
    (after,) = run(_gathered(engine, asking(max_tokens=3)))
    assert isinstance(after[-1], Finished)
    assert after[-1].reason == "length"
    assert engine.state().totals.steps > 0


def test_a_state_that_cannot_be_told_ends_nothing(
    engine: ModelEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise KeyError("nobody knows why")

    monkeypatch.setattr("orchestrator.serving.engine.state_of", fails)
    (events,) = run(_gathered(engine, asking(max_tokens=30)))
    assert isinstance(events[-1], Finished)


def test_the_command_serves_until_it_is_told_to_stop(forks: Forks) -> None:
    words = ["-m", "orchestrator.cli.main", "serve", "--model", str(MODEL), "--port", "0"]
    words += ["--context", "1000000"]
    import openai

    with subprocess.Popen(forks.command(words), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        told = [next(process.stderr)]
        while " at http" not in told[-1]:
            told.append(next(process.stderr))
        assert any("1,000,000" in line and "8,192 tokens" in line for line in told)
        url = told[-1].split()[2].rstrip(",")
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=DEADLINE_S)
        made = client.completions.create(model="any", prompt="Once", max_tokens=8, temperature=0)
        assert made.usage is not None
        assert made.usage.completion_tokens == 8
        deadline_s = time.monotonic() + DEADLINE_S
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(max(1, deadline_s - time.monotonic())) == 0
