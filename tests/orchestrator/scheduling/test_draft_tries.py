"""Tries of other depths: paid for, spread, and gone on with for the same sequences only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from operator import mul

import pytest

from orchestrator.scheduling.candidate import Candidate, Verified
from orchestrator.scheduling.native import DraftDepth, MeasuredCosts
from placement.pass_costs import PassCosts


def choosing(draft_s: float) -> DraftDepth:
    """With settled estimates: half of the drafts hold, and one takes `draft_s` beside a pass of 1 s."""
    costs = MeasuredCosts(PassCosts((1, 2, 8), (1.0, 1.0, 1.0), ((draft_s, 0.0),) * 3))
    depth = DraftDepth(3, costs)
    for number in range(400):
        depth.learn(half_held(number))
    return depth


def half_held(number: int) -> list[Verified]:
    """Of eight steps on end, with three drafts each."""
    return [Verified(99, 3, (3, 0, 1, 0, 2, 0, 1, 0)[number % 8])]


def chosen_by(depth: DraftDepth, candidates: Sequence[Candidate], steps: int) -> Iterator[dict[int, int]]:
    """Of so many steps, which teach nothing new."""
    for number in range(steps):
        yield depth.choose(candidates)
        depth.learn(half_held(number))


def test_cheap_tries_go_one_draft_up_and_down_in_turn_with_a_gap_between_them() -> None:
    """A third draft gains an eighth and takes about as much of a step as three drafts then make."""
    chosen = list(chosen_by(choosing(0.11), [Candidate(7, 99)], 100))
    assert chosen[:5] == [{7: 2}] * 5
    others = {step: depths[7] for step, depths in enumerate(chosen) if depths[7] != 2}
    assert list(others.values())[:2] == [3, 1]
    assert {b - a for a, b in pairwise(others)} == {12}


def test_none_is_drafted_for_several_steps_on_end() -> None:
    """The first one finds caches full of what drafts read."""
    chosen = list(chosen_by(choosing(0.3), [Candidate(7, 99)], 900))
    runs = [run for run in "".join(str(depths[7]) for depths in chosen).replace("2", "1").split("1") if run]
    assert len(runs) > 2
    assert {len(run) for run in runs} == {3}


@pytest.mark.parametrize("draft_s", [0.6, 0.9])
def test_tries_lose_no_more_than_their_share_of_the_time(draft_s: float) -> None:
    depth, steps, lost = choosing(draft_s), 4000, 0.0
    chances = depth.acceptance(7)
    for depths in chosen_by(depth, [Candidate(n, 99) for n in range(2)], steps):
        tokens = sum(1 + sum(list(accumulate(chances, mul))[:drafts]) for drafts in depths.values())
        lost += 1 + draft_s * max(depths.values()) - tokens / 2
    # Two accounts of a step and a half each at first, and three thousandths of the time.
    assert 0.5 * 0.003 * steps < lost <= 2 * 1.5 + 0.003 * steps


def test_where_drafts_do_not_pay_rows_are_kept_from_well_before_each_try_to_its_end() -> None:
    depth, candidates, kept, drafted = choosing(0.9), [Candidate(7, 99, (64,) * 3)], [], []
    for number in range(4000):
        drafted.append(depth.choose(candidates)[7] > 0)
        kept.append(depth.keeps_rows)
        depth.learn(half_held(number))
    tries = [step for step, drafts in enumerate(drafted) if drafts]
    assert len(tries) > 5
    # 33 steps with the one that drafts, so that 32 rows are there, and the one it drafts for.
    assert all(all(kept[max(0, step - 33) : step + 1]) for step in tries)
    assert sum(kept[1000:]) < 0.5 * len(kept[1000:])


def test_who_keeps_no_rows_drafts_nothing_and_keeps_them_from_when_drafts_pay() -> None:
    """Eight sequences gain less than a draft takes for all of them; one gains more."""
    costs = MeasuredCosts(PassCosts((1, 2, 8, 9, 16), (1.0, 1.0, 1.0, 2.0, 9.0), ((0.1, 0.0),)))
    depth = DraftDepth(1, costs)
    eight, one = [Candidate(n, 99, (64,)) for n in range(8)], [Candidate(0, 99, (64,))]

    def step(candidates: Sequence[Candidate]) -> int:
        drafts = sum(depth.choose(candidates).values())
        depth.learn([])
        return drafts

    while depth.keeps_rows:
        step(eight)
    plans = depth.plans_made
    while depth.plans_made == plans:
        assert step(eight) == 0
    assert not depth.keeps_rows
    # Somebody who ended is taken for there for 16 steps.
    assert [step(one) for _ in range(16)] == [0] * 16
    assert depth.keeps_rows
    assert step([Candidate(0, 0)]) == 0
    assert 1 in [step(one) for _ in range(18)]


def test_a_try_for_which_much_waits_goes_on_until_somebody_comes_or_there_is_no_room() -> None:
    # What it costs is guessed: too much for an answer that ends so soon, and little enough for a try.
    costs = PassCosts((1, 2, 8), (1.0, 1.0, 1.0), ((0.01, 0.001),))
    one, both = [Candidate(0, 1, (1400,))], [Candidate(0, 1, (1400,)), Candidate(1, 1)]

    def begun() -> DraftDepth:
        depth = DraftDepth(1, MeasuredCosts(costs))
        assert [depths[0] for depths in chosen_by(depth, one, 7)] == [0] * 5 + [1] * 2
        return depth

    assert list(chosen_by(begun(), one, 2)) == [{0: 1}, {0: 1}]
    assert [depths[0] for depths in chosen_by(begun(), both, 2)] == [0, 0]
    depth = begun()
    assert depth.choose(one, most_rows=0) == {0: 0}
    assert depth.choose(one) == {0: 0}
