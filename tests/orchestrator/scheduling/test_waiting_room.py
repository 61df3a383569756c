"""Several requests at once: all of them stand in the line, or none does."""

from __future__ import annotations

from contextlib import suppress
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.scheduling.job import SequenceRequest
from orchestrator.scheduling.limits import Limits
from orchestrator.scheduling.step_plan import StepPlan
from orchestrator.serving.answer import Refused
from tests.examples import examples
from tests.orchestrator.scheduling.engine import Engine, kv_budget, scheduler_of

CLIENTS = ("ada", "ben", "cleo")


def begun(seed: int) -> Engine:
    """A server in the middle of its day; equal seeds give equal ones."""
    luck = Random(seed)
    limits = Limits(
        1200,
        sequences=luck.choice((1, 4)),
        pass_rows=64,
        most_waiting=luck.choice((3, 8, 12)),
        turn_tokens=40,
        spare_tokens=30,
    )
    kv = kv_budget(luck.choice((1300, 3000)))
    engine = Engine(scheduler_of(limits, kv), limits, kv, Random(seed))
    for number in range(luck.randrange(12)):
        with suppress(Refused):
            engine.submit(number, luck.choice(CLIENTS), luck.randint(1, 400), luck.randint(1, 100))
        for _ in range(luck.randrange(4)):
            engine.step()
    return engine


def idle(seed: int) -> Engine:
    """The same server before its day begins."""
    engine = begun(seed)
    limits, kv = engine.limits, engine.kv
    return Engine(scheduler_of(limits, kv), limits, kv, Random(seed))


def asked(engine: Engine, requests: list[SequenceRequest], when: str, *, at_once: bool) -> list[str]:
    """Kinds of the refusals."""
    refused = list[str]()

    def ask() -> None:
        for part in [requests] if at_once else [[one] for one in requests]:
            try:
                engine.submit_all(part)
            except Refused as refusal:
                refused.append(refusal.kind)

    if when == "in a step" and engine.sequences:
        engine.step(ask)
    elif when == "without boxes":
        engine.scheduler.cluster_lacks("den is gone", engine.now_s)
        ask()
        engine.scheduler.cluster_is_back()
    else:
        ask()
    return refused


def rest(engine: Engine) -> list[StepPlan]:
    """What it does until nobody is left."""
    plans = list[StepPlan]()
    while engine.sequences:
        plans.append(engine.step())
    return plans


@given(
    seed=st.integers(0, 10_000),
    client=st.sampled_from((*CLIENTS, "dan")),
    sizes=st.lists(st.tuples(st.integers(1, 1210), st.integers(1, 100)), min_size=1, max_size=12)
    | st.lists(st.tuples(st.integers(1, 100), st.integers(1, 50)), min_size=1, max_size=16),
    when=st.sampled_from(("between steps", "in a step", "without boxes")),
)
@settings(examples(100))
def test_they_are_taken_where_each_would_be_and_else_change_nothing(
    seed: int, client: str, sizes: list[tuple[int, int]], when: str
) -> None:
    requests = [SequenceRequest(100 + place, client, *size) for place, size in enumerate(sizes)]
    engine, twin = begun(seed), begun(seed)
    refused = asked(engine, requests, when, at_once=True)
    kinds = asked(begun(seed), requests, when, at_once=False)
    assert bool(refused) == bool(kinds)
    # Whoever cannot be taken at all is named before a line that is too long.
    if refused not in ([], ["invalid"]):
        assert refused[0] == min(kinds, key=("too_long", "busy").index)
    if refused == ["invalid"]:
        assert "busy" in asked(idle(seed), requests, "between steps", at_once=False)
    asked(twin, [] if refused else requests, when, at_once=False)
    assert rest(engine) == rest(twin)


@pytest.mark.parametrize(("client", "may_wait"), [("ada", 3), ("ben", 2)])
def test_a_line_that_is_too_short_for_all_takes_none(client: str, may_wait: int) -> None:
    """Ada is alone until ben comes, so her part of the line is the half, and his a third."""
    limits, kv = Limits(1000, sequences=2, most_waiting=6), kv_budget(100_000)
    engine = Engine(scheduler_of(limits, kv), limits, kv, Random(1))
    engine.submit(0, "ada", 10, 50)
    engine.step()
    # One of them finds room at once.
    requests = [SequenceRequest(number, client, 10, 50) for number in range(1, may_wait + 3)]
    shares = engine.scheduler._shares
    before = dict(shares._served), dict(shares._active)
    with pytest.raises(Refused, match="of yours") as caught:
        engine.submit_all(requests)
    assert (caught.value.kind, caught.value.retry_after_s) == ("busy", pytest.approx(4.9, rel=0.1))
    assert (engine.scheduler.running, engine.scheduler.waiting) == (1, 0)
    assert (dict(shares._served), dict(shares._active)) == before
    engine.submit_all(requests[:-1])
    engine.run()
    assert [engine.ended[one.sequence].generated for one in requests[:-1]] == [50] * (may_wait + 1)


@pytest.mark.parametrize(
    ("number", "prompt", "why"), [(7, 10, "5 answers of yours"), (5, 900, "prompts of yours")]
)
def test_more_answers_than_an_idle_server_takes_are_not_asked_to_come_again(
    number: int, prompt: int, why: str
) -> None:
    limits, kv = Limits(1000, sequences=2, most_waiting=8, most_waiting_kv=4.0), kv_budget(1500)
    engine = Engine(scheduler_of(limits, kv), limits, kv, Random(1))
    with pytest.raises(Refused, match=f"too many at once.* {why}") as caught:
        engine.submit_all([SequenceRequest(place, "ada", prompt, 5) for place in range(number)])
    assert (caught.value.kind, caught.value.retry_after_s) == ("invalid", None)
    engine.submit_all([SequenceRequest(place, "ada", 10, 5) for place in range(6)])
    engine.run()


def test_whoever_waits_alone_may_however_long_its_prompt_is() -> None:
    """With five clients here, a part of the line is four sixths of the memory."""
    limits, kv = Limits(1000, sequences=8), kv_budget(1000)
    engine = Engine(scheduler_of(limits, kv), limits, kv, Random(1))
    for number, client in enumerate(("ada", "ben", "cleo", "dan")):
        engine.submit(number, client, 10, 50)
    engine.step()
    engine.submit(4, "eve", 900, 5)
    assert engine.scheduler.waiting == 1
    with pytest.raises(Refused, match="prompts of yours"):
        engine.submit(5, "eve", 900, 5)
    engine.run()


def test_one_that_can_never_be_taken_keeps_out_the_others() -> None:
    limits, kv = Limits(1000), kv_budget(100_000)
    engine = Engine(scheduler_of(limits, kv), limits, kv, Random(1))
    with pytest.raises(Refused, match=r"1,000 tokens") as caught:
        engine.submit_all([SequenceRequest(1, "ada", 10, 5), SequenceRequest(2, "ada", 1000, 5)])
    assert caught.value.kind == "too_long"
    assert engine.scheduler.waiting == 0
    engine.submit(1, "ada", 10, 5)
    engine.run()
