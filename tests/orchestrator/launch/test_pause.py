"""Pauses between starts grow while a process dies young, and begin anew once one has lived."""

from __future__ import annotations

from orchestrator.launch.pause import FIRST_S, LONGEST_S, STEADY_S, RestartPause


def test_pauses_double_up_to_the_longest() -> None:
    pause = RestartPause()
    pauses = [pause.after_s(1.0) for _ in range(12)]
    assert pauses[:3] == [FIRST_S, 2 * FIRST_S, 4 * FIRST_S]
    assert pauses[-1] == LONGEST_S


def test_one_that_lived_for_long_is_started_again_soon() -> None:
    pause = RestartPause()
    for _ in range(12):
        pause.after_s(1.0)
    assert pause.after_s(STEADY_S) == FIRST_S
    assert pause.after_s(1.0) == 2 * FIRST_S
