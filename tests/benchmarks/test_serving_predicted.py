"""Loads predicted from recorded steps: costs, ways, drafts, and a server whose costs are known."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.serving.asks import Asks, Lengths
from benchmarks.serving.client import Answer
from benchmarks.serving.learned import Acceptance, Learned, OnTheWay, Run
from benchmarks.serving.load import Load, Window, figures
from benchmarks.serving.predicted import Prediction, Rounds, Setup, predict
from benchmarks.serving.recording import Step
from benchmarks.serving.step_costs import Cost, Experts, StepCosts
from orchestrator.scheduler import Scheduler
from orchestrator.scheduling.job import SequenceRequest
from orchestrator.scheduling.kv_budget import KvBudget
from orchestrator.scheduling.limits import Limits
from orchestrator.scheduling.native import MeasuredCosts
from orchestrator.scheduling.step_plan import Advance, StepOutcome
from placement.pass_costs import PassCosts

ASKS = Asks(0, Lengths(16, 16, 16), Lengths(10, 10, 10))
MIXED = Asks(1, Lengths(48, 8, 200), Lengths(24, 4, 80))
EXPERTS = Experts(64, 4)
COSTS = PassCosts((1, 8, 64), (0.1, 0.12, 0.3), ((0.01, 0.0001),) * 3)
SETUP = Setup(Limits(512), KvBudget(()), COSTS)
ROUNDS = Rounds((0,), 10.0, 100.0)
IN_S, FIRST_S, LAST_S = 0.0043, 0.0031, 0.0012


def step(ended_s: float, took_s: float, rows: int, *, prompt_rows: int = 0) -> Step:
    writers = tuple(range(rows - prompt_rows))
    none = (0,) * len(writers)
    return Step(ended_s, took_s, 0.0, 0, writers, none, none, int(prompt_rows > 0), prompt_rows, 0, 0, 1)


def run(steps: Sequence[Step], users: int = 1, answers: Sequence[Answer] = ()) -> Run:
    return Run(Load(users, (Window(0.0, 100.0),), answers, [0]), steps)


def said(learned: Learned, users: int, setup: Setup = SETUP) -> Prediction:
    return predict(learned, ASKS, users, ROUNDS, setup)


def served(users: int, stop_s: float = 20.0) -> Run:
    """What a server of known costs does with MIXED asks; written without the code that predicts."""
    costs = MeasuredCosts(PassCosts((1,), (0.01,)))
    scheduler = Scheduler(SETUP.limits, SETUP.kv, costs)
    numbers, now_s = itertools.count(), 0.0
    asked = [(0.0, 0.0 + IN_S)] * users
    live: dict[int, Answer] = {}
    wanted: dict[int, tuple[int, int]] = {}
    held: dict[int, int] = {}
    answers, steps = list[Answer](), list[Step]()
    while asked or live:
        for sent_s, at_s in [each for each in asked if each[1] <= now_s]:
            asked.remove((sent_s, at_s))
            number = next(numbers)
            ask = MIXED.ask(number)
            scheduler.submit([SequenceRequest(number, "all", len(ask.prompt), ask.max_tokens)], now_s)
            live[number], held[number] = Answer(sent_s, "answered"), 0
            wanted[number] = len(ask.prompt), ask.max_tokens
        plan = scheduler.plan_step(now_s)
        if not plan.rows:
            now_s = min(at_s for _, at_s in asked)
            continue
        advances = []
        for number, rows in [(of.sequence, 1) for of in plan.decode] + [
            (of.sequence, of.tokens) for of in plan.prefill
        ]:
            held[number] += rows
            prompt, most = wanted[number]
            got = max(0, held[number] - prompt + 1)
            ended = "length" if got == most else None
            advances.append(Advance(number, (0,) * (got > 0), 0, 0, ended, held[number]))
        outcome = StepOutcome(tuple(advances), prefill_rows=plan.prefill_rows)
        num_ended = sum(advance.ended is not None for advance in advances)
        took_s = 0.005 + 0.0004 * EXPERTS.touched(plan.rows) + 0.0001 * plan.rows
        took_s += 0.003 * len(plan.decode) + 0.002 * len(plan.prefill)
        came = sum(at_s <= now_s + took_s for _, at_s in asked)
        took_s += 0.001 * came
        ended_s = now_s + took_s
        now_s = ended_s + 0.001 + 0.0005 * len(plan.decode) + 0.002 * num_ended
        scheduler.finished_step(plan, outcome, took_s)
        first, stayed = list[float](), list[float]()
        for advance in advances:
            if not advance.tokens:
                continue
            answer = live[advance.sequence]
            stay_s = ended_s - answer.begun_s - IN_S
            if not answer.pieces_s:
                first.append(stay_s)
            answer.pieces_s.append(ended_s + FIRST_S)
            answer.tokens += 1
            if advance.ended:
                stayed.append(stay_s)
                answer.ended_s = ended_s + LAST_S
                answers.append(live.pop(advance.sequence))
                if answer.ended_s < stop_s:
                    asked.append((answer.ended_s, answer.ended_s + IN_S))
        steps.append(Step.of(plan, outcome, took_s, ended_s, came, len(live), tuple(first), tuple(stayed)))
    return Run(Load(users, (Window(2.0, stop_s),), answers, list(range(next(numbers)))), steps)


def test_a_server_of_known_costs_is_predicted_by_other_numbers_of_users() -> None:
    runs = [served(users) for users in (1, 2, 4, 8, 16)]
    for one in runs:
        learned = Learned.of([other for other in runs if other is not one], EXPERTS)
        found = predict(learned, MIXED, one.load.users, Rounds((0,), 2.0, 18.0), SETUP)
        measured = figures(one.load)
        assert found.tokens_per_s == pytest.approx(measured.tokens_per_s, rel=0.02)
        assert found.first_p50_s == pytest.approx(measured.first_p50_s, rel=0.02)


@pytest.mark.parametrize("users", [1, 4])
def test_a_server_whose_steps_cost_the_same_is_predicted_as_counted_by_hand(users: int) -> None:
    learned = Learned.of([run([step(at * 0.1, 0.08, 1) for at in range(1, 50)])], EXPERTS)
    each = step(1.0, 0.08, 1)
    assert sum(learned.costs.expected(each)) == pytest.approx(0.1)
    same = replace(learned.costs, trunk=Cost((0.08,)), after=Cost((0.02,)))
    found = said(replace(learned, costs=same), users)
    # Ten passes an answer: the prompt's gives the first token.
    assert found.tokens_per_s == pytest.approx(users * 10, rel=0.02)
    assert found.first_p50_s == pytest.approx(0.08 if users == 1 else 0.1, abs=0.021)


def test_the_way_is_learned_without_the_wait_for_a_step_to_end() -> None:
    runs = [served(users, 5.0) for users in (1, 8)]
    for one in runs:
        found = OnTheWay.of(one)
        assert found is not None
        assert found.in_s == pytest.approx(IN_S)
        assert found.first_s == pytest.approx(FIRST_S)
        assert found.last_s == pytest.approx(LAST_S)


def test_more_users_are_longer_on_the_way_until_no_more_are_answered_at_a_time() -> None:
    costs = StepCosts.of([[step(1.0, 0.1, 1)]], EXPERTS)
    learned = Learned(costs, Acceptance(), {1: OnTheWay(0.1), 4: OnTheWay(0.4), 16: OnTheWay(0.8)})
    assert learned.way(2, 8).in_s == pytest.approx(0.2)
    assert learned.way(64, 8) == learned.way(8, 8)
    assert replace(learned, on_the_way={4: OnTheWay(0.4)}).way(1, 8).in_s == pytest.approx(0.4)
    assert replace(learned, on_the_way={}).way(1, 8) == OnTheWay()


def test_who_has_no_place_waits_for_the_one_before() -> None:
    learned = Learned.of([run([step(at * 0.1, 0.1, 1) for at in range(1, 50)])], EXPERTS)
    same = replace(learned, costs=replace(learned.costs, trunk=Cost((0.1,))))
    wide, narrow = (
        said(same, 4, replace(SETUP, limits=replace(SETUP.limits, sequences=sequences)))
        for sequences in (4, 1)
    )
    assert narrow.tokens_per_s == pytest.approx(wide.tokens_per_s / 4, rel=0.05)
    assert narrow.first_p50_s > 20 * wide.first_p50_s


def test_a_pause_counts_only_while_there_is_work() -> None:
    steps = [step(1.0, 0.1, 1), replace(step(1.3, 0.1, 1), left=0), step(9.0, 0.1, 1)]
    costs = StepCosts.of([steps], EXPERTS)
    assert costs.expected(steps[0]).after_s == pytest.approx(0.2)
    with pytest.raises(ValueError, match="no step"):
        StepCosts.of([[]], EXPERTS)


def test_steps_by_lot_take_as_long_together_as_the_measured_ones_and_differ_as_they_did() -> None:
    steps = [step(1.0, 0.1 * rows * (4 if at == 7 else 1), rows) for at in range(8) for rows in (1, 4, 8)]
    costs, random = StepCosts.of([steps], EXPERTS), np.random.default_rng(0)
    drawn = [costs.drawn(each, random).trunk_s for _ in range(400) for each in steps]
    assert sum(drawn) / 400 == pytest.approx(sum(each.took_s for each in steps), rel=0.05)
    assert max(drawn) > 2 * costs.expected(steps[-1]).trunk_s > 0


def test_drafts_are_learned_by_position_and_make_the_server_faster() -> None:
    plain = step(1.0, 0.1, 1)
    steps = [
        replace(plain, ended_s=at * 0.1, drafted=(2,), accepted=(at % 3,), drafting_s=0.01, drafting_rows=1)
        for at in range(1, 400)
    ]
    learned = Learned.of([run(steps)], EXPERTS)
    assert learned.acceptance.chances == pytest.approx((2 / 3, 1 / 2), rel=0.02)
    assert learned.costs.expected(steps[0]).drafting_s == pytest.approx(0.01)
    without = Learned.of([run([plain, replace(plain, ended_s=1.1)])], EXPERTS)
    assert without.acceptance == Acceptance()
    drafting = replace(SETUP, most_behind=(64, 64))
    assert said(learned, 1, drafting).tokens_per_s > 1.3 * said(without, 1, drafting).tokens_per_s


def test_rows_wait_for_mtp_layers_until_they_draft() -> None:
    plain = step(1.0, 0.1, 1)
    steps = [
        replace(plain, drafted=(1,), accepted=(1,), drafting_s=0.001 * rows, drafting_rows=rows)
        for rows in range(1, 9)
    ]
    learned = Learned.of([run([plain, *steps])], EXPERTS)
    near, far = (said(learned, 1, replace(SETUP, most_behind=(most,))) for most in (1, 400))
    assert far.tokens_per_s < near.tokens_per_s


def test_rounds_begin_where_numbers_do() -> None:
    assert replace(run([]), load=Load(1, (), (), [10, 11, 0, 2, 1, 20])).firsts == [0, 10, 20]


@pytest.mark.parametrize("chances", [(0.7, 0.7), (0.4, 1.0), (0.2, 0.9, 0.9, 0.8)])
def test_texts_differ_in_how_often_drafts_hold_as_much_as_they_did(chances: tuple[float, ...]) -> None:
    """Few tries of each text, so that luck alone makes them look different too."""
    luck = np.random.default_rng(0)
    steps = []
    for writer in range(600):
        for _ in range(12):
            held = 0
            while held < 2 and luck.random() < chances[writer % len(chances)]:
                held += 1
            steps.append(replace(step(1.0, 0.1, 1), writers=(writer,), drafted=(2,), accepted=(held,)))
    found = Acceptance.of(steps)
    mean = float(np.mean(chances))
    second = float(np.mean(np.square(chances)) / mean)
    assert found.chances == pytest.approx((mean, second), abs=0.02)
    assert found.variance == pytest.approx(np.var(chances), abs=0.01)
    drawn = [found.drawn(luck) for _ in range(4000)]
    assert np.mean([first for first, _ in drawn]) == pytest.approx(mean, abs=0.02)
    assert np.var([first for first, _ in drawn]) == pytest.approx(found.variance, abs=0.01)
    # Of those whose first draft holds, the second one does as often as it did.
    pairs = np.array(drawn)
    assert (pairs[:, 0] * pairs[:, 1]).sum() / pairs[:, 0].sum() == pytest.approx(second, abs=0.03)


def test_one_text_says_nothing_of_others() -> None:
    tried = replace(step(1.0, 0.1, 1), drafted=(1,), accepted=(1,))
    assert Acceptance.of([tried]) == Acceptance((1.0,))
    assert Acceptance.of([step(1.0, 0.1, 1)]).drawn(np.random.default_rng(0)) == ()
