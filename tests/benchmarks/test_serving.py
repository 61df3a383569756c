"""The benchmark of serving: what it asks, counts and predicts, and that answers survive killed workers."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks.random_gguf import SMALL, FileTypes, write_random_gguf
from benchmarks.serving.asks import Asks, Lengths
from benchmarks.serving.client import Answer, complete
from benchmarks.serving.faults import MODEL, disturbed, some_asks, undisturbed
from benchmarks.serving.load import Load, Window, figures
from benchmarks.serving.predicted import Learned, Outside, Run, predict
from benchmarks.serving.recording import Step, read_steps
from benchmarks.serving.server import potluck
from benchmarks.serving.session import Turn, asked, compacted, fifths
from orchestrator.scheduling.kv_budget import KvBudget
from orchestrator.scheduling.limits import Limits
from orchestrator.tokenizer import Tokenizer
from workers.formats.open_model import open_model

ASKS = Asks(0, Lengths(16, 16, 16), Lengths(10, 10, 10))


def step(ended_s: float, took_s: float, rows: int, *, prompt_rows: int = 0) -> Step:
    decoded = rows - prompt_rows
    return Step(ended_s, took_s, 0.0, 0, decoded, (0,) * decoded, (0,) * decoded, prompt_rows, 1)


def run(steps: list[Step], users: int = 1, answers: Sequence[Answer] = ()) -> Run:
    return Run(Load(users, (Window(0.0, 100.0),), answers, [0]), steps)


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
    steps = [step(1.0, 0.1, 3), step(2.0, 0.2, 8, prompt_rows=8)]
    lines = [json.dumps(asdict(each)) + "\n" for each in steps]
    assert read_steps([*lines, lines[0][:20]]) == steps


@pytest.mark.parametrize("users", [1, 4])
def test_a_server_whose_passes_cost_the_same_is_predicted_as_counted_by_hand(users: int) -> None:
    learned = Learned.of([run([step(at * 0.1, 0.08, 1) for at in range(1, 50)])], 0)
    assert sum(learned.between_s) == pytest.approx(0.02)
    found = predict(
        learned,
        ASKS,
        users,
        warm_up_s=10.0,
        seconds=100.0,
        first=0,
        limits=Limits(64),
        kv=KvBudget(()),
    )
    # Ten passes an answer: the prompt's gives the first token.
    assert found.tokens_per_s == pytest.approx(users * 10, rel=0.02)
    assert found.first_p50_s == pytest.approx(0.1)


def test_what_the_scheduler_does_not_see_is_learned_by_users_and_added() -> None:
    answer = Answer(1.0, "answered", pieces_s=[1.3, 2.0], ended_s=2.2, tokens=10)
    steps = [replace(step(at * 0.1, 0.1, 1), first_s=(0.1,), stayed_s=(1.0,)) for at in range(1, 9)]
    learned = Learned.of([run(steps, 2, [answer]), run(steps, 8, [replace(answer, pieces_s=[1.7, 2.0])])], 0)
    assert learned.outside[2] == Outside(pytest.approx(0.2), pytest.approx(0.0))
    assert learned.outside_s(1) == learned.outside[2]
    assert learned.outside_s(5).before_s == pytest.approx(0.4)
    seen, unseen = (
        predict(each, ASKS, 1, warm_up_s=10.0, seconds=99.0, first=0, limits=Limits(64), kv=KvBudget(()))
        for each in (learned, Learned.of([run(steps)], 0))
    )
    assert seen.first_p50_s == pytest.approx(unseen.first_p50_s + 0.2)
    # Ten steps of 0.1 s an answer, and 0.2 s of nothing.
    assert seen.tokens_per_s == pytest.approx(unseen.tokens_per_s / 1.2, rel=0.03)


def test_rounds_are_taken_together() -> None:
    first = Load(
        2, (Window(0.0, 2.0),), [Answer(0.0, "answered", pieces_s=[1.0], ended_s=1.0, tokens=4)], [0]
    )
    later = replace(first, windows=(Window(10.0, 12.0),), sent=[1])
    both = Load.joined([first, later])
    assert (both.seconds, both.sent, len(both.answers)) == (4.0, [0, 1], 2)
    assert [both.has(at_s) for at_s in (1.0, 5.0, 11.0)] == [True, False, True]
    assert figures(both).tokens_per_s == 2.0


def test_who_has_no_place_waits_for_the_one_before() -> None:
    learned = Learned.of([run([step(at * 0.1, 0.1, 1) for at in range(1, 50)])], 0)
    wide, narrow = (
        predict(
            learned,
            ASKS,
            4,
            warm_up_s=10.0,
            seconds=50.0,
            first=0,
            limits=replace(Limits(64), sequences=sequences),
            kv=KvBudget(()),
        )
        for sequences in (4, 1)
    )
    assert narrow.tokens_per_s == pytest.approx(wide.tokens_per_s / 4, rel=0.05)
    assert narrow.first_p50_s > 20 * wide.first_p50_s


def test_a_pause_counts_only_while_there_is_work() -> None:
    steps = [step(1.0, 0.1, 1), replace(step(1.3, 0.1, 1), left=0), step(9.0, 0.1, 1)]
    assert Learned.of([run(steps)], 0).between_s == (pytest.approx(0.2), 0.0)


def test_passes_of_about_as_many_rows_are_averaged() -> None:
    steps = [step(1.0, 0.1, 1), step(2.0, 0.3, 1), step(3.0, 0.5, 64), step(4.0, 0.7, 66, prompt_rows=64)]
    costs = Learned.of([run(steps)], 0).costs
    assert costs.trunk_s(1) == pytest.approx(0.2)
    assert costs.trunk_s(65) == pytest.approx(0.6)
    assert 0.2 < costs.trunk_s(32) < 0.6
    with pytest.raises(ValueError, match="no step"):
        Learned.of([run([])], 0)


def test_drafts_are_learned_by_position_and_make_the_server_faster() -> None:
    plain = step(1.0, 0.1, 1)
    steps = [
        replace(plain, ended_s=at * 0.1, drafted=(2,), accepted=(at % 3,), drafting_s=0.01, drafting_rows=1)
        for at in range(1, 400)
    ]
    learned = Learned.of([run(steps)], 2)
    assert learned.acceptance == pytest.approx((2 / 3, 1 / 2), rel=0.02)
    without = Learned.of([run([plain, replace(plain, ended_s=1.1)])], 0)
    fast, slow = (
        predict(
            each, ASKS, 1, warm_up_s=10.0, seconds=100.0, first=0, limits=Limits(64), kv=KvBudget(())
        ).tokens_per_s
        for each in (learned, without)
    )
    assert fast > 1.3 * slow


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
