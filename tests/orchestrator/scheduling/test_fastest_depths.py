"""The compiled search for depths: it finds what a plain one finds, and refuses what it cannot read."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass
from itertools import accumulate
from operator import mul

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.scheduling.curve import Curve
from orchestrator.scheduling.measured_costs import MeasuredCosts
from orchestrator.scheduling.native import Corrections, fastest
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


@dataclass(frozen=True, slots=True)
class Case:
    """What is asked of a search."""

    gains: list[list[float]]
    waiting_s: list[list[float] | None]
    costs: MeasuredCosts
    absent: int
    other_rows: int
    most_drafts: int

    @property
    def tokens(self) -> int:
        """Of a step without drafts."""
        return len(self.gains) + self.absent

    def rate(self, depths: list[int], deepest: int) -> float:
        """Tokens a second of these depths, where so many MTP layers draft."""
        drafting = [n for n, depth in enumerate(depths) if depth]
        waiting_s = sum(own[deepest] for n in drafting if (own := self.waiting_s[n]) is not None)
        seconds = self.costs.trunk_s(self.tokens + sum(depths) + self.other_rows)
        seconds += self.costs.drafting_s(deepest, len(drafting)) + waiting_s
        return (self.tokens + sum(sum(own[:n]) for own, n in zip(self.gains, depths, strict=True))) / seconds

    def best_rate(self) -> float:
        """By a plain search from one number of drafts to the next, each counted anew."""
        rates = [self.rate([0] * len(self.gains), 0)]
        drafts = [(-gain, place, n) for n, own in enumerate(self.gains) for place, gain in enumerate(own)]
        for depth in (1, 2, 3):
            taken = sorted(draft for draft in drafts if draft[1] < depth)
            for count in range(1, min(len(taken), self.most_drafts) + 1):
                depths = [sum(n == of for _, _, n in taken[:count]) for of in range(len(self.gains))]
                rates.append(self.rate(depths, depth))
        return max(rates)

    def searched(self) -> tuple[list[int], float]:
        """By the compiled search."""
        rows = self.tokens + self.other_rows
        return fastest(
            self.gains,
            self.waiting_s,
            self.costs.passes(rows + 3 * len(self.gains)),
            [self.costs.drafting(depth, len(self.gains)) for depth in (1, 2, 3)],
            self.tokens,
            rows,
            self.most_drafts,
            0.0,
        )


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
    gains = [list(accumulate(chances, mul)) for chances, _ in sequences]
    waiting_s = [own for _, own in sequences]
    case = Case(gains, waiting_s, costs_of(measured), absent, other_rows, most_drafts)
    depths, rate = case.searched()
    assert rate == pytest.approx(case.best_rate(), rel=1e-9)
    assert sum(depths) <= most_drafts
    assert all(depth <= len(own) for depth, own in zip(depths, gains, strict=True))
    # Layers may draft that no sequence of these asks for: it looks at each number of layers.
    rates = [case.rate(depths, deepest) for deepest in range(max(depths), 4 if any(depths) else 1)]
    assert any(found == pytest.approx(rate, rel=1e-9) for found in rates)


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
    return Curve(array("d", seconds), Corrections(0.0), 0.0)


FLOATS = Curve(array("f", [0, 1, 1]), Corrections(0.0), 0.0)
ONE = curve([0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (([[0.5]], [], ONE, [ONE], 1, 1, 9, 0.0), "as many that wait as sequences"),
        (([[0.5]], [[0.1]], ONE, [ONE], 1, 1, 9, 0.0), "seconds for each depth, or None"),
        (([[0.5, 0.2]], [None], ONE, [ONE], 1, 1, 9, 0.0), "more drafts than MTP layers"),
        (([[0.5, 0.2], []], [None] * 2, ONE, [ONE], 1, 1, 9, 0.0), "more drafts than MTP layers"),
        (([[math.nan]], [None], ONE, [ONE], 1, 1, 9, 0.0), "gain is not finite"),
        (([[0.5]], [None], ONE, [ONE], 1, 2**63 - 1, 9, 0.0), "pass of so many rows is not predicted"),
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
