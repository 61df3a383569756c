"""Many requests on one model: each gets what it would get alone, whatever else runs, fails or ends."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from orchestrator.generate import GenerationParams, generate
from orchestrator.model.kv_pool import KvPool
from orchestrator.model.step35 import Step35Model
from orchestrator.sampling import Sampler
from orchestrator.sampling_params import SamplingParams
from orchestrator.scheduling.limits import Limits
from orchestrator.serving.answer import CallStarted, Prefilled, Reasoning, Text
from orchestrator.serving.request import GenerationRequest, OutputForm
from placement.errors import KvDoesNotFit, WorkerLost
from tests.orchestrator.serving.served import TOOLS, Answer, Served, asking, chatting, load, shown

SEEDED = SamplingParams(0.9, seed=3)


@pytest.fixture(scope="module")
def model() -> Step35Model:
    return load()


@pytest.fixture
def served(model: Step35Model) -> Iterator[Served]:
    found = Served(model)
    yield found
    found.close()


@pytest.fixture
def plain(model: Step35Model) -> Iterator[Served]:
    """Without drafts."""
    found = Served(model, mtp=0)
    yield found
    found.close()


REQUESTS = [
    asking("Once upon", sampling=SEEDED, max_tokens=40),
    asking("The following options", max_tokens=30),
    chatting("Hello there", max_tokens=33),
    chatting("Hello there", "Well.", "Go on, tell me more", sampling=SEEDED),
    asking("Once upon", sampling=SamplingParams(1.2, 40, 0.9, 0.01, 9, 0.3, 0.2, 1.1), max_tokens=25),
    asking("x", ignore_eos=True, sampling=SamplingParams(seed=1), max_tokens=50),
    chatting("A " * 300, max_tokens=9),
]


def alone(model: Step35Model, request: GenerationRequest) -> tuple[str, str, str]:
    """Without drafts, and with nothing kept."""
    served = Served(model, mtp=0)
    (found,) = shown(served.run(request))
    served.close()
    return found


def test_each_request_gets_what_it_gets_alone(model: Step35Model) -> None:
    expected = [alone(model, request) for request in REQUESTS]
    served = Served(model)
    together = served.run(*REQUESTS)
    assert shown(together) == expected
    assert sum(answer.end.usage.accepted for answer in together if answer.end) > 0
    # And again, from what was kept.
    assert shown(served.run(*REQUESTS[::-1]))[::-1] == expected
    assert served.runner.counts.totals({}).cached_tokens > 300
    served.close()


def test_a_text_prompt_gives_the_tokens_of_generate(model: Step35Model, served: Served) -> None:
    (answer,) = served.run(asking("The following", sampling=SEEDED, max_tokens=40))
    ids = served.tokenizer.encode_prompt("The following")
    model_alone = generate(model, ids, GenerationParams(40, SEEDED))
    assert answer.text() == served.tokenizer.decode(model_alone.token_ids)
    assert answer.end is not None
    assert answer.end.usage.completion_tokens == len(model_alone.token_ids)


def test_a_turn_that_continues_a_conversation_is_spared_what_was_read(served: Served) -> None:
    said = "Tell me of the options for the next release, please. " * 4
    (first,) = served.run(chatting(said, max_tokens=20))
    assert first.started.cached_tokens == 0
    (second,) = served.run(chatting(said, first.text() or "Yes.", "And then?", max_tokens=20))
    assert second.started.cached_tokens > 60
    read = [event.tokens for event in second.events if isinstance(event, Prefilled)]
    assert read[-1] == second.started.prompt_tokens


def test_answers_of_one_request_differ_and_each_is_repeatable(served: Served) -> None:
    requests = [asking(sampling=SEEDED, choice=choice) for choice in range(4)]
    once, again = shown(served.run(*requests)), shown(served.run(*requests))
    assert once == again
    assert len(set(once)) > 2


def test_a_stop_text_ends_an_answer_before_it(served: Served) -> None:
    (whole,) = served.run(asking(max_tokens=40))
    stop = whole.text()[12:16]
    (answer,) = served.run(asking(max_tokens=40, stop=("never to be seen", stop)))
    assert answer.text() == whole.text().partition(stop)[0]
    assert answer.end is not None
    assert (answer.end.reason, answer.end.stop_text) == ("stop_text", stop)


def test_probabilities_are_those_of_the_whole_softmax(plain: Served) -> None:
    (answer,) = plain.run(asking(max_tokens=6, top_logprobs=3))
    found = [one for event in answer.events if isinstance(event, Text) for one in event.logprobs]
    assert "".join(one.text for one in found) == answer.text()
    ids = plain.tokenizer.encode_prompt("Once upon a time")
    for one in found:
        cache = plain.model.new_cache()
        rows = plain.model.forward(torch.tensor(ids), [_slice(cache, len(ids))])
        expected = plain.model.logits(rows[-1:])[0].double().log_softmax(0)
        cache.close()
        assert one.logprob == pytest.approx(float(expected[one.token_id]), abs=1e-9)
        top = expected.topk(3).values.tolist()
        assert [logprob for _, _, logprob in one.top] == pytest.approx(top, abs=1e-9)
        ids.append(one.token_id)


def _slice(cache: Any, count: int) -> Any:
    from orchestrator.model.attention import SequenceSlice

    return SequenceSlice(cache, count)


def test_no_reasoning_and_a_budget_of_it(served: Served) -> None:
    none, some, free = served.run(
        chatting("Hello", reasoning_tokens=0, ignore_eos=True),
        chatting("Hello", reasoning_tokens=10, ignore_eos=True, max_tokens=40),
        chatting("Hello", ignore_eos=True, max_tokens=40),
    )
    assert none.text(Reasoning).strip() == ""
    assert none.text()
    assert some.end is not None
    assert free.end is not None
    assert 10 <= some.end.usage.reasoning_tokens < free.end.usage.reasoning_tokens
    assert some.text()
    # Up to the budget nothing changes.
    shared = some.text(Reasoning)
    assert free.text(Reasoning).startswith(shared[: len(shared) // 2])


@pytest.mark.parametrize("reasoning_tokens", [0, 5])
def test_a_call_that_was_asked_for_is_made(served: Served, reasoning_tokens: int) -> None:
    def named(name: str) -> dict[str, Any]:
        return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}

    several = (*TOOLS, named("go_there"), named("gone"))
    settings = {"reasoning_tokens": reasoning_tokens, "max_tokens": 30, "ignore_eos": True}
    for seed in range(2):
        for tools, choice, names in (
            (TOOLS, "look", {"look"}),
            (TOOLS, "required", {"look"}),
            (several, "required", {"look", "go_there", "gone"}),
            (several, "gone", {"gone"}),
        ):
            sampling = SamplingParams(1.5, seed=seed)
            request = chatting("Hello", tools=tools, tool_choice=choice, sampling=sampling, **settings)
            (answer,) = served.run(request)
            call = next(event for event in answer.events if isinstance(event, CallStarted))
            assert call.name in names
            assert call.call_id.startswith("call_")
    (hidden,) = served.run(chatting("Hello", tools=TOOLS, tool_choice="none", reasoning_tokens=0))
    assert not any(isinstance(event, CallStarted) for event in hidden.events)


SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "y"]}, "n": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["a", "n"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("sampling", [SamplingParams(0.0), SamplingParams(1.5, seed=8)])
def test_an_answer_has_the_form_that_was_asked_for(served: Served, sampling: SamplingParams) -> None:
    form = OutputForm("json_schema", json.dumps(SCHEMA))
    plain, chat = served.run(
        asking(output=form, sampling=sampling, max_tokens=400),
        chatting("Hello", output=form, sampling=sampling, reasoning_tokens=0, max_tokens=400),
    )
    for answer in (plain, chat):
        found = json.loads(answer.text())
        assert found["a"] in ("x", "y")
        assert 0 <= found["n"] <= 9
        assert answer.end is not None
        assert answer.end.reason == "stop"


def test_a_cancelled_request_is_told_no_more_and_holds_nothing(served: Served) -> None:
    first, second = served.submit(asking(max_tokens=200)), served.submit(asking(max_tokens=20))
    for _ in range(6):
        served.runner.turn()
    told = len(first.events)
    served.runner.cancel(0)
    served.runner.cancel(0)
    while served.runner.live:
        served.runner.turn()
    assert len(first.events) == told
    assert second.end is not None
    assert second.end.reason == "length"


def test_what_cannot_be_taken_is_refused(model: Step35Model) -> None:
    served = Served(model, limits=Limits(64, most_waiting=1))
    (too_long,) = served.run(asking("word " * 100))
    assert too_long.refused is not None
    assert too_long.refused.kind == "too_long"
    answers = [served.submit(asking(max_tokens=20)) for _ in range(12)]
    busy = [answer.refused for answer in answers if answer.refused is not None]
    assert busy
    assert {refused.kind for refused in busy} == {"busy"}
    assert all(refused.retry_after_s for refused in busy)
    while served.runner.live:
        served.runner.turn()
    assert all(answer.end for answer in answers if answer.refused is None)
    served.close()


def test_answers_that_are_asked_for_at_once_are_all_taken_or_none(model: Step35Model) -> None:
    # Two run, and one waits: that is the part of a client that is alone.
    served = Served(model, limits=Limits(64, sequences=2, most_waiting=2))
    four = [asking(sampling=SEEDED, choice=choice) for choice in range(4)]
    for requests, kind in ((four, "invalid"), ([*four[:2], asking("word " * 100)], "too_long")):
        refused = [answer.refused for answer in served.submit_all(*requests)]
        assert [one and one.kind for one in refused] == [kind] * len(requests)
        assert (served.runner.live, served.runner.scheduler.waiting) == ({}, 0)
        assert served.runner.turn() is None
    assert served.runner.counts.totals({}).refused == {"invalid": 4, "too_long": 3}
    answers = served.submit_all(*four[:3])
    while served.runner.live:
        served.runner.turn()
    alone = [served.run(request)[0] for request in four[:3]]
    assert shown(answers) == shown(alone)
    served.close()


def test_one_that_fails_while_it_is_taken_leaves_none_behind(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = iter(range(3))

    def sampler(*given: Any, **named: Any) -> Sampler:
        if next(made) == 2:
            raise KeyError("nobody knows why")
        return Sampler(*given, **named)

    with monkeypatch.context() as patched:
        patched.setattr("orchestrator.serving.runner.Sampler", sampler)
        with pytest.raises(KeyError):
            served.submit_all(*[asking() for _ in range(3)])
    assert (served.runner.live, served.runner.scheduler.waiting) == ({}, 0)
    (after,) = served.run(asking())
    assert after.end is not None
    served.close()


def test_little_memory_makes_requests_wait_and_changes_no_token(model: Step35Model) -> None:
    before = model.kv_pool
    expected = []
    requests = [asking(f"Number {n}", max_tokens=300, ignore_eos=True, sampling=SEEDED) for n in range(5)]
    roomy = Served(model)
    expected = shown(roomy.run(*requests))
    roomy.close()
    sizes = model.kv_sizes(3)
    model.kv_pool = KvPool(sum(size.num_bytes_in_any_passes(400) for size, _ in sizes) * 2)
    try:
        served = Served(model)
        assert shown(served.run(*requests)) == expected
        assert served.runner.scheduler.waiting == 0
        served.close()
    finally:
        model.kv_pool = before


def lose(model: Step35Model, monkeypatch: pytest.MonkeyPatch, error: Exception, at: int) -> None:
    """The pass number `at` from now fails."""
    forward, passes = model.forward, iter(range(10_000))

    def failing(*arguments: Any) -> torch.Tensor:
        if next(passes) == at:
            raise error
        return forward(*arguments)

    monkeypatch.setattr(model, "forward", failing)


def test_a_cluster_that_comes_back_costs_no_token(
    model: Step35Model, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = shown(served.run(*REQUESTS[:4]))
    lose(model, monkeypatch, WorkerLost("attic is gone"), 4)
    answers = [served.submit(request) for request in REQUESTS[:4]]
    turns = 0
    while served.runner.live:
        served.is_whole = not 0 < (turns := turns + bool(served.runner.lack)) < 5
        wait_s = served.runner.turn()
        served.now_s += wait_s or 0.0
    assert turns >= 5
    assert shown(answers) == expected


def test_a_cluster_that_stays_away_ends_requests_with_a_reason(
    model: Step35Model, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose(model, monkeypatch, WorkerLost("attic is gone"), 3)
    begun = served.submit(asking(max_tokens=100))
    served.is_whole = False
    for _ in range(5):
        served.runner.turn()
    waiting = served.submit(asking())
    for _ in range(400):
        wait_s = served.runner.turn()
        served.now_s += wait_s or 0.5
    assert begun.end is not None
    assert begun.end.reason == "lost"
    assert "attic is gone" in begun.end.message
    assert waiting.refused is not None
    assert waiting.refused.kind == "unavailable"
    late = served.submit(asking())
    assert late.refused is not None
    served.is_whole = True
    served.runner.turn()
    (after,) = served.run(asking())
    assert after.end is not None
    assert after.end.reason == "length"


def test_a_step_that_fails_for_no_known_reason_ends_its_requests_alone(
    model: Step35Model, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose(model, monkeypatch, ValueError("nobody knows why"), 3)
    (answer,) = served.run(asking())
    assert answer.end is not None
    assert (answer.end.reason, answer.end.message) == ("lost", "nobody knows why")
    (after,) = served.run(asking())
    assert after.end is not None
    assert after.end.reason == "length"


def test_what_runs_ends_when_the_server_stops(served: Served) -> None:
    answers = [served.submit(request) for request in REQUESTS]
    for _ in range(3):
        served.runner.turn()
    served.runner.end_all("shutdown")
    assert {answer.end.reason for answer in answers if answer.end} == {"shutdown"}
    assert all(isinstance(answer, Answer) and answer.end for answer in answers)


@pytest.mark.parametrize("max_tokens", [1, 2, 5])
def test_few_tokens_are_enough_for_an_answer_that_begins_with_forced_ones(
    served: Served, max_tokens: int
) -> None:
    for settings in (
        {"reasoning_tokens": 0},
        {"reasoning_tokens": 0, "tools": TOOLS, "tool_choice": "look"},
        {"reasoning_tokens": 1, "tools": TOOLS, "tool_choice": "required"},
    ):
        (answer,) = served.run(chatting("Hello", max_tokens=max_tokens, ignore_eos=True, **settings))
        assert answer.end is not None
        assert answer.end.usage.completion_tokens == max_tokens
        assert answer.end.usage.cached_tokens <= answer.end.usage.prompt_tokens
    (usual, none) = served.run(
        chatting("Hello", max_tokens=max_tokens), chatting("Hello", max_tokens=max_tokens, reasoning_tokens=0)
    )
    assert none.started.prompt_tokens > usual.started.prompt_tokens


def test_a_prompt_is_never_spared_more_tokens_than_it_has(served: Served) -> None:
    request = chatting("Tell me more of it. " * 20, reasoning_tokens=0, tools=TOOLS, tool_choice="look")
    for _ in range(3):
        (answer,) = served.run(request)
        assert answer.end is not None
        assert answer.started.cached_tokens == answer.end.usage.cached_tokens
        assert answer.started.cached_tokens < answer.started.prompt_tokens
    assert answer.started.cached_tokens > 100


def test_an_answer_that_may_only_go_round_ends_alone(served: Served) -> None:
    other = asking(max_tokens=60, sampling=SEEDED)
    (expected,) = shown(served.run(other))
    looping = asking(output=OutputForm("regex", "(ab){900}"), max_tokens=600)
    found, beside = served.run(looping, other, most_turns=6000)
    assert shown([beside]) == [expected]
    assert found.end is not None
    assert found.end.reason in ("loop", "length")


def test_text_that_cannot_be_kept_changes_no_token(
    model: Step35Model, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [chatting("Hello there, " * 40, max_tokens=40, ignore_eos=True), REQUESTS[0]]
    expected = shown(served.run(*requests))

    def full(*_: Any) -> int:
        raise KvDoesNotFit("no page is free")

    monkeypatch.setattr(served.runner.prefix, "keep", full)
    served.runner.prefix.evict(2**40)
    assert shown(served.run(*requests)) == expected


def test_an_answer_that_cannot_go_on_ends_alone(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    (expected,) = shown(served.run(REQUESTS[0]))
    broken, beside = served.submit(asking(max_tokens=50)), served.submit(REQUESTS[0])
    served.runner.turn()

    def fails(*_: Any) -> None:
        raise ValueError("nobody knows why")

    monkeypatch.setattr(served.runner.live[next(iter(served.runner.live))].answer, "_take_one", fails)
    while served.runner.live:
        served.runner.turn()
    assert broken.end is not None
    assert broken.end.reason == "lost"
    assert shown([beside]) == [expected]


def test_a_cluster_that_only_seems_to_be_back_is_not_waited_for_without_end(
    model: Step35Model, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: Any) -> torch.Tensor:
        raise WorkerLost("attic refuses")

    monkeypatch.setattr(model, "forward", refuses)
    answer = served.submit(asking())
    for _ in range(1000):
        if not served.runner.live:
            break
        wait_s = served.runner.turn()
        served.now_s += wait_s or 0.1
    assert answer.end is not None
    assert answer.end.reason == "lost"
    assert "attic refuses" in answer.end.message
    assert served.now_s < 60


def test_penalties_count_more_tokens_than_there_was_room_for(served: Served) -> None:
    sampling = SamplingParams(1.5, seed=7, presence_penalty=1, frequency_penalty=0.5, repetition_penalty=1.2)
    (answer,) = served.run(asking(max_tokens=300, sampling=sampling, ignore_eos=True))
    assert answer.end is not None
    assert (answer.end.reason, answer.end.usage.completion_tokens) == ("length", 300)


def test_a_step_that_fails_behind_its_pass_keeps_nothing(
    model: Step35Model, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose, calls = model.logits_to_choose_from, iter(range(1000))

    def fails(*arguments: Any) -> Any:
        if next(calls) == 8:
            raise ValueError("nobody knows why")
        return choose(*arguments)

    monkeypatch.setattr(model, "logits_to_choose_from", fails)
    answers = served.run(*(asking(f"Once {n}", max_tokens=60, ignore_eos=True) for n in range(3)))
    assert {answer.end.reason for answer in answers if answer.end} == {"lost"}
    (after,) = served.run(asking())
    assert after.end is not None
    assert after.end.reason == "length"


def test_a_form_that_takes_too_much_work_ends_its_answer_alone(served: Served) -> None:
    other = asking(max_tokens=60, sampling=SEEDED)
    (expected,) = shown(served.run(other))
    form = OutputForm("regex", "(a{1000}){1000}")
    broken, beside = served.run(asking(output=form, max_tokens=400), other)
    assert shown([beside]) == [expected]
    assert broken.end is not None
    assert set(broken.text()) <= {"a"}
    if broken.end.reason == "lost":
        assert "simpler" in broken.end.message


def leaves(served: Served) -> None:
    served.runner.cancel(0)


def is_stopped(served: Served) -> None:
    served.runner.end_all("shutdown")


def waits_too_long(served: Served) -> None:
    served.is_whole = False
    served.now_s += 100.0
    served.runner.turn()


@pytest.mark.parametrize("ends", [leaves, is_stopped, waits_too_long])
def test_a_request_that_ends_behind_a_failed_step_holds_and_keeps_nothing(
    model: Step35Model, served: Served, monkeypatch: pytest.MonkeyPatch, ends: Callable[[Served], None]
) -> None:
    served.submit(asking(max_tokens=100, ignore_eos=True))
    for _ in range(30):
        served.runner.turn()
    choose = model.logits_to_choose_from

    def lost(*arguments: Any) -> Any:
        choose(*arguments)
        raise WorkerLost("attic is gone")

    with monkeypatch.context() as patch:
        patch.setattr(model, "logits_to_choose_from", lost)
        served.runner.turn()
    ends(served)
    assert not served.runner.live
    assert model.kv_pool.used_bytes == 0
    assert served.runner.prefix.stats.boundaries == 0
    served.runner.turn()


@pytest.mark.parametrize("ends", [leaves, is_stopped])
def test_a_request_that_ends_between_steps_keeps_its_text(
    served: Served, ends: Callable[[Served], None]
) -> None:
    served.submit(asking(max_tokens=100, ignore_eos=True))
    for _ in range(30):
        served.runner.turn()
    ends(served)
    assert served.runner.prefix.stats.boundaries > 0


def test_a_text_is_kept_again_once_it_was_computed_again(
    model: Step35Model, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose(model, monkeypatch, WorkerLost("attic is gone"), 20)
    served.run(asking(max_tokens=60, ignore_eos=True))
    assert served.runner.prefix.stats.boundaries > 0


def test_the_parts_of_steps_add_up(
    model: Step35Model, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.timer, "_clock", served._clock)
    before_s = sum(model.timer.seconds().values())
    served.run(asking(max_tokens=20))
    parts_s = model.timer.seconds()
    totals = served.runner.counts.totals(parts_s)
    # Each look at this clock takes a millisecond: two of a step, around all of its parts.
    assert sum(parts_s.values()) - before_s == pytest.approx(totals.step_s - 0.002 * totals.steps)
    assert list(parts_s)[-1] == "other"
