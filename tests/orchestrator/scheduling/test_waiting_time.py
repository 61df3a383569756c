"""What a refused client is told, while no answer has ended and after."""

from __future__ import annotations

import pytest

from orchestrator.scheduling.job import Job
from orchestrator.scheduling.native import MeasuredCosts
from orchestrator.scheduling.waiting_time import WaitingTime
from placement.pass_costs import PassCosts

STEP_S = 0.02


def waiting_time() -> WaitingTime:
    return WaitingTime(MeasuredCosts(PassCosts((1, 8), (STEP_S, STEP_S), ())), 8)


def running(generated: int, max_tokens: int = 2000) -> list[Job]:
    """Eight answers with so many tokens each."""
    return [
        Job(number, "ann", 10, max_tokens, number, "running", generated=generated, computed=9 + generated)
        for number in range(8)
    ]


@pytest.mark.parametrize(
    ("generated", "tokens"), [(1, 255), (100, 156), (250, 250), (500, 500), (1000, 1000), (1500, 500)]
)
def test_before_an_answer_has_ended_they_are_taken_to_get_as_much_again(generated: int, tokens: int) -> None:
    found = waiting_time().until_one_ends(running(generated))
    assert found == pytest.approx(tokens * STEP_S)


def test_the_first_answers_that_end_count_as_much_as_the_guess_before_them() -> None:
    waiting = waiting_time()
    for number in range(1, 10):
        waiting.ended(2000)
        mean = (256 + number * 2000) / (1 + number)
        assert waiting.until_one_ends(running(1)) == pytest.approx((mean - 1) * STEP_S)
    for _ in range(60):
        waiting.ended(100)
    assert waiting.until_one_ends(running(1)) == pytest.approx(99 * STEP_S, rel=0.1)


def test_one_that_is_longer_than_usual_is_taken_to_be_as_much_longer_again() -> None:
    waiting = waiting_time()
    for _ in range(100):
        waiting.ended(10)
    assert waiting.until_one_ends(running(500)) == pytest.approx(490 * STEP_S, rel=0.01)
    assert waiting.until_one_ends(running(500, max_tokens=600)) == pytest.approx(100 * STEP_S)
    # Who is about to end counts.
    assert waiting.until_one_ends([*running(500), *running(1)]) == 1.0


def test_none_is_told_less_than_a_second() -> None:
    waiting = waiting_time()
    waiting.ended(10)
    assert waiting.until_one_ends(running(134)) == 1.0
    assert waiting.until_one_ends([]) == 1.0
