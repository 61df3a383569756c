"""The compiled search for depths: it finds what a plain one finds, and refuses what it cannot read."""

from __future__ import annotations

import math
from array import array
from itertools import accumulate
from operator import mul

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.scheduling.measured_costs import MeasuredCosts
from orchestrator.scheduling.native import Corrections, Curve, fastest
from placement.pass_costs import PassCosts

PREDICTED = PassCosts((1, 2, 4, 8, 16, 32), (1.0, 1.2, 1.5, 1.9, 2.4, 3.5), ((0.1, 0.01),) * 3)
CHANCES = st.lists(st.floats(0, 1), max_size=3)
WAITING = st.none() | st.lists(st.floats(0, 0.5), min_size=4, max_size=4)
MEASURED = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 24), st.floats(-1, 1)), max_size=12)


def costs_of(measured: list[tuple[int, int, float]]) -> MeasuredCosts:
    """After passes of that size, and drafting so deep for as many, that took e ** found times as long."""
    costs = MeasuredCosts(PREDICTED)
    for depth, size, found in measured:
        costs.learn_pass(size, PREDICTED.trunk_s(size) * math.exp(found))
        costs.learn_drafting(depth, size, 0.2 * math.exp(found))
    return costs


def plain(
    gains: list[list[float]],
    waiting_s: list[list[float] | None],
    costs: MeasuredCosts,
    absent: int,
    other_rows: int,
    most_drafts: int,
) -> tuple[list[int], float]:
    """The same from one number of drafts to the next, each counted anew."""
    num = len(gains) + absent
    best = ([0] * len(gains), num / costs.trunk_s(num + other_rows))
    drafts = [(-gain, place, n) for n, own in enumerate(gains) for place, gain in enumerate(own)]
    for depth in (1, 2, 3):
        taken = sorted(draft for draft in drafts if draft[1] < depth)
        for count in range(1, min(len(taken), most_drafts) + 1):
            depths = [sum(n == of for _, _, n in taken[:count]) for of in range(len(gains))]
            drafting = [n for n, own in enumerate(depths) if own]
            waiting = [own[depth] for n in drafting if (own := waiting_s[n]) is not None]
            seconds = costs.trunk_s(num + count + other_rows) + costs.drafting_s(depth, len(drafting))
            rate = (num - sum(gain for gain, _, _ in taken[:count])) / (seconds + sum(waiting))
            if rate > best[1] * (1 + 1e-12):
                best = depths, rate
    return best


@given(
    st.lists(st.tuples(CHANCES, WAITING), min_size=1, max_size=6),
    MEASURED,
    st.integers(0, 2),
    st.integers(0, 9),
    st.integers(0, 20),
)
def test_it_finds_what_a_plain_search_finds(
    sequences: list[tuple[list[float], list[float] | None]],
    measured: list[tuple[int, int, float]],
    absent: int,
    other_rows: int,
    most_drafts: int,
) -> None:
    costs = costs_of(measured)
    gains = [list(accumulate(chances, mul)) for chances, _ in sequences]
    waiting_s = [own for _, own in sequences]
    num = len(gains) + absent
    depths, rate = fastest(
        gains,
        waiting_s,
        costs.passes(num + other_rows + 3 * len(gains)),
        [costs.drafting(depth, len(gains)) for depth in (1, 2, 3)],
        num,
        num + other_rows,
        most_drafts,
        0.0,
    )
    expected, best_rate = plain(gains, waiting_s, costs, absent, other_rows, most_drafts)
    assert rate == pytest.approx(best_rate, rel=1e-9)
    # Two choices may be as fast but for rounding.
    assert depths == expected or rate == pytest.approx(best_rate, rel=1e-12)
    assert sum(depths) <= most_drafts


@pytest.mark.parametrize(("least_gain", "depths"), [(0.24, [1]), (0.26, [0]), (-0.5, [1])])
def test_drafts_are_faster_than_none_by_the_part_that_is_asked_for(
    least_gain: float, depths: list[int]
) -> None:
    """A draft that half holds in a step that takes a fifth more gains a quarter."""
    passes, drafting = curve([0, 1.0, 1.0]), curve([0, 0.2])
    assert fastest([[0.5]], [None], passes, [drafting], 1, 1, 9, least_gain)[0] == depths


def test_a_table_may_grow_after_a_search() -> None:
    """Its memory is not held on to."""
    passes = curve([0, 1.0, 1.0])
    fastest([[0.5]], [None], passes, [curve([0, 0.2])], 1, 1, 9, 0.0)
    passes.predicted_s.append(1.0)
    assert len(passes.predicted_s) == 4


def curve(seconds: list[float]) -> Curve:
    return Curve(array("d", seconds), Corrections(), 0.0)


FLOATS = Curve(array("f", [0, 1, 1]), Corrections(), 0.0)
ONE = curve([0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (([[0.5]], [], ONE, [ONE], 1, 1, 9, 0.0), "as many that wait as sequences"),
        (([[0.5]], [[0.1]], ONE, [ONE], 1, 1, 9, 0.0), "seconds for each depth, or None"),
        (([[0.5, 0.2]], [None], ONE, [ONE], 1, 1, 9, 0.0), "more drafts than MTP layers"),
        (([[0.5]], [None], ONE, [ONE], 1, 2, 9, 0.0), "pass of so many rows is not predicted"),
        (([[0.5]], [None], ONE, [ONE], 1, 0, 9, 0.0), "pass of so many rows is not predicted"),
        (([[0.5]], [None], ONE, [curve([0])], 1, 1, 9, 0.0), "drafting for so many sequences"),
        (([[0.5]], [None], FLOATS, [ONE], 1, 1, 9, 0.0), "float64"),
        (([[0.5]], [None], ONE, [FLOATS], 1, 1, 9, 0.0), "float64"),
        (([[0.5]], [None], ONE, [3], 1, 1, 9, 0.0), "curve"),
        (([["a"]], [None], ONE, [ONE], 1, 1, 9, 0.0), "real number"),
        (([3], [None], ONE, [ONE], 1, 1, 9, 0.0), "list of gains"),
        (([[]] * 70000, [None] * 70000, ONE, [ONE], 1, 1, 9, 0.0), "too many drafts"),
    ],
)
def test_what_cannot_be_searched_is_refused(arguments: tuple[object, ...], error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        fastest(*arguments)  # type: ignore[arg-type]
