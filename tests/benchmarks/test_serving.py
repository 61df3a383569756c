"""The benchmark of serving: what it asks and counts, and that answers survive killed workers."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks.random_gguf import SMALL, FileTypes, write_random_gguf
from benchmarks.serving.asks import Asks, Lengths
from benchmarks.serving.client import Answer, complete
from benchmarks.serving.faults import MODEL, disturbed, some_asks, undisturbed
from benchmarks.serving.load import Load, Window, figures
from benchmarks.serving.recording import Step, read_steps
from benchmarks.serving.server import potluck
from benchmarks.serving.session import Turn, asked, compacted, fifths
from orchestrator.tokenizer import Tokenizer
from workers.formats.open_model import open_model

ASKS = Asks(0, Lengths(16, 16, 16), Lengths(10, 10, 10))


def test_the_same_number_asks_the_same_and_lengths_keep_to_their_bounds() -> None:
    asks = Asks(3, Lengths(64, 8, 512), Lengths(48, 4, 192), range(10_000))
    drawn = [asks.ask(number) for number in range(200)]
    assert drawn == [asks.ask(number) for number in range(200)]
    lengths = [len(ask.prompt) for ask in drawn]
    assert 8 <= min(lengths) < 40 < 100 < max(lengths) <= 512
    assert sorted(lengths)[100] == pytest.approx(64, rel=0.3)
    assert all(ask.prompt == tuple(range(ask.prompt[0], ask.prompt[-1] + 1)) for ask in drawn)


def test_figures_are_of_the_window_alone() -> None:
    inside = Answer(
        9.0, "answered", pieces_s=[9.5, 10.5, 11.5, 12.5], ended_s=12.5, tokens=8, drafted=4, accepted=3
    )
    refused = Answer(11.0, "refused", ended_s=11.1)
    before = Answer(1.0, "answered", pieces_s=[2.0, 3.0], ended_s=3.0, tokens=100)
    found = figures(Load(2, (Window(10.0, 12.0),), [inside, refused, before], [0, 1, 2]))
    assert found.tokens_per_s == pytest.approx(2 * 2 / 2)
    assert found.gap_p50_s == 1.0
    assert (found.answered, found.refused, found.failed) == (0, 1, 0)
    later = figures(Load(2, (Window(9.0, 13.0),), [inside], [0]))
    assert (later.first_p50_s, later.answered, later.acceptance) == (0.5, 1, 0.75)


def test_steps_are_read_back_but_for_a_line_that_was_cut() -> None:
    plain = Step(1.0, 0.1, 0.02, 3, (7, 9), (1, 0), (1, 0), 0, 0, 1, 0, 2)
    steps = [plain, replace(plain, prompts=1, prompt_rows=8, ended=1, first_s=(0.2,), stayed_s=(1.5,))]
    lines = [json.dumps(asdict(each)) + "\n" for each in steps]
    assert read_steps([*lines, lines[0][:20]]) == steps


def test_rounds_are_taken_together() -> None:
    first = Load(
        2, (Window(0.0, 2.0),), [Answer(0.0, "answered", pieces_s=[1.0], ended_s=1.0, tokens=4)], [0]
    )
    later = replace(first, windows=(Window(10.0, 12.0),), sent=[1])
    both = Load.joined([first, later])
    assert (both.seconds, both.sent, len(both.answers)) == (4.0, [0, 1], 2)
    assert [both.has(at_s) for at_s in (1.0, 5.0, 11.0)] == [True, False, True]
    assert figures(both).tokens_per_s == 2.0


def test_a_session_is_cut_before_a_users_message_and_its_results_follow_their_calls() -> None:
    messages = list(itertools.chain.from_iterable(asked(number, {"content": "x"}) for number in range(20)))
    cut = compacted(messages)
    assert len(cut) < len(messages)
    assert cut[1]["role"] == "user"
    for call, result in itertools.pairwise(cut):
        if result["role"] == "tool":
            assert call["tool_calls"][0]["id"] == result["tool_call_id"]


def test_fifths_leave_the_warm_up_out() -> None:
    turns = [Turn(float(number), number, 100, 50) for number in range(100)]
    first, last = fifths(turns)
    assert (first.mean_s, last.mean_s) == (27.5, 91.5)
    assert first.cached == 0.5


def test_a_random_file_takes_another_models_tokenizer_and_keeps_its_own_vocabulary(tmp_path: Path) -> None:
    shape = replace(SMALL, moe_layers=1, vocab=2304)
    path = write_random_gguf(tmp_path / "m.gguf", shape, FileTypes.all_in("q8_0"), tokenizer=MODEL)
    opened = open_model(path)
    assert opened.config.vocab_size == 2304
    text = "def rows(self):\n    return 7"
    assert Tokenizer.load(path).encode(text) == Tokenizer.load(MODEL).encode(text)


@pytest.mark.long
def test_answers_are_right_while_workers_are_killed() -> None:
    asks = some_asks(1)

    async def run() -> Counter[str]:
        with potluck(MODEL) as alone:
            texts = await undisturbed(alone.address, asks)
        with potluck(MODEL, ("--workers", "3", "--survive", "1")) as server:
            tally = await disturbed(server, asks, texts, users=4, seconds=30.0, every_s=8.0)
        assert tally.kills >= 2
        assert tally.is_right, tally.details
        return tally.outcomes

    assert asyncio.run(run())["answered"] > 10


@pytest.mark.slow
def test_a_server_is_asked_as_users_ask_it(tmp_path: Path) -> None:
    steps = tmp_path / "steps"
    with potluck(MODEL, ("--context", "256"), steps) as server:
        answer = asyncio.run(complete(server.address, ASKS.ask(0)))
        again = asyncio.run(complete(server.address, ASKS.ask(0)))
        ask = replace(ASKS.ask(0), prompt=ASKS.ask(0).prompt * 300)
        too_long = asyncio.run(complete(server.address, ask))
        assert server.workers() == []
    assert (answer.outcome, answer.tokens, answer.finish) == ("answered", 10, "length")
    assert answer.begun_s < answer.pieces_s[0] <= answer.pieces_s[-1] <= answer.ended_s
    assert again.text == answer.text
    assert (too_long.outcome, too_long.status) == ("failed", 400)
    rows = sum(each.decoded + sum(each.accepted) for each in read_steps(steps.open()))
    assert rows == 2 * 9
