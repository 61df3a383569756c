"""Many drawn histories of a failing cluster. One is replayed by its seed: SEED=7 pytest -k replays."""

from __future__ import annotations

import os

import pytest

from tests.simulation.scenario import Scenario, passes_within, run_with_a_liar

DAILY, LONG, A_BLOCK = 300, 10_000, 100


def run(seed: int) -> Scenario:
    scenario = Scenario(seed)
    try:
        scenario.run()
    except Exception as error:
        story = "\n".join([*scenario.log, *(event.line for event in scenario.events[-20:])])
        raise AssertionError(f"seed {seed} at {scenario.world.now_s:.3f} s: {error!r}\n{story}") from error
    return scenario


@pytest.mark.parametrize("first", range(0, DAILY, A_BLOCK))
def test_no_fault_gives_a_wrong_sum_or_stops_the_passes(first: int) -> None:
    for seed in range(first, first + A_BLOCK):
        run(seed)


@pytest.mark.long
@pytest.mark.parametrize("first", range(DAILY, LONG, A_BLOCK))
def test_no_fault_of_a_night_gives_a_wrong_sum_or_stops_the_passes(first: int) -> None:
    for seed in range(first, first + A_BLOCK):
        run(seed)


def test_a_seed_replays_to_the_same_end() -> None:
    seed = int(os.environ.get("SEED", "7"))
    once, again = run(seed), run(seed)
    assert once.world.now_s == again.world.now_s
    assert once.events == again.events


def test_a_liar_changes_no_sum_and_is_named() -> None:
    for seed in range(40):
        run_with_a_liar(seed)


@pytest.mark.long
def test_a_liar_of_many_changes_no_sum_and_is_named() -> None:
    for seed in range(40, 400):
        run_with_a_liar(seed)


def test_who_comes_and_goes_delays_the_passes_by_its_suspicion_alone() -> None:
    undisturbed = passes_within(10.0, 1, comes_and_goes=False)
    # 1 s of silence before the first rescue, then 0.25 s of every 2 s until others are asked.
    assert passes_within(10.0, 1, comes_and_goes=True) > 0.75 * undisturbed
