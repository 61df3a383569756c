"""Seconds by part: each counts once."""

from __future__ import annotations

import pytest

from orchestrator.timing import StepTimer


class Clock:
    """Moves only when told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def move(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_an_inner_part_stops_the_outer_ones_clock(clock: Clock) -> None:
    timer = StepTimer(clock)
    with timer.part("other"):
        clock.move(1)
        with timer.part("wire"):
            clock.move(2)
            with timer.part("attention"):
                clock.move(4)
            clock.move(8)
        clock.move(16)
    clock.move(32)
    assert timer.seconds() == {"attention": 4, "wire": 10, "other": 17}
    assert list(timer.seconds()) == ["attention", "wire", "other"]


def test_a_part_that_owns_what_is_inside(clock: Clock) -> None:
    timer = StepTimer(clock)
    with timer.part("mtp", owns_inner=True):
        clock.move(1)
        with timer.part("attention"), timer.part("lm_head"):
            clock.move(2)
        clock.move(4)
    with timer.part("attention"):
        clock.move(8)
    assert timer.seconds() == {"attention": 8, "mtp": 7}


def test_the_same_part_inside_itself_counts_once(clock: Clock) -> None:
    timer = StepTimer(clock)
    with timer.part("wire"), timer.part("wire"):
        clock.move(1)
    assert timer.seconds() == {"wire": 1}


def test_reset_forgets_and_goes_on_with_what_is_open(clock: Clock) -> None:
    timer = StepTimer(clock)
    with timer.part("other"):
        clock.move(1)
        timer.reset()
        clock.move(2)
    assert timer.seconds() == {"other": 2}


def test_an_error_inside_a_part_leaves_the_timer_usable(clock: Clock) -> None:
    timer = StepTimer(clock)

    def fail() -> None:
        with timer.part("other"), timer.part("wire"):
            clock.move(1)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with timer.part("router"):
        clock.move(2)
    assert timer.seconds() == {"router": 2, "wire": 1}
