"""The compiled search for depths: it finds what a plain one finds, and refuses what it cannot read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from operator import mul

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.scheduling.native import MeasuredCosts, fastest
from placement.pass_costs import PassCosts

PREDICTED = PassCosts((1, 2, 4, 8, 16, 32), (1.0, 1.2, 1.5, 1.9, 2.4, 3.5), ((0.1, 0.01),) * 3)
CHANCES = st.lists(st.floats(0, 1), max_size=3)
WAITING = st.just([]) | st.lists(st.floats(0, 0.5), min_size=4, max_size=4)
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
    waiting_s: list[list[float]]
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
        waiting_s = sum(own[deepest] for n in drafting if (own := self.waiting_s[n]))
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
        return fastest(
            self.costs, self.gains, self.waiting_s, self.tokens, self.other_rows, self.most_drafts, 0.0
        )


@given(
    st.lists(st.tuples(CHANCES, WAITING), min_size=1, max_size=6),
    MEASURED,
    st.integers(0, 2),
    st.integers(0, 9),
    st.integers(0, 20),
)
def test_it_finds_what_a_plain_search_finds(
    sequences: list[tuple[list[float], list[float]]],
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


# A draft takes a fifth of a step, and another row in the pass nothing.
FIFTH = PassCosts((1,), (1.0,), ((0.2, 0.0),))


@pytest.mark.parametrize(("least_gain", "depths"), [(0.24, [1]), (0.26, [0]), (-0.5, [1])])
def test_drafts_are_faster_than_none_by_the_part_that_is_asked_for(
    least_gain: float, depths: list[int]
) -> None:
    """A draft that half holds in a step that takes a fifth more gains a quarter."""
    assert fastest(MeasuredCosts(FIFTH), [[0.5]], [[]], 1, 0, 9, least_gain)[0] == depths


@pytest.mark.parametrize("most_rows", [0, -1, -(2**63)])
def test_where_no_row_is_left_nothing_is_drafted(most_rows: int) -> None:
    assert fastest(MeasuredCosts(FIFTH), [[1.0]], [[]], 1, 0, most_rows, 0.0) == ([0], 1.0)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (([[0.5]], [], 1, 0, 9, 0.0), "as many that wait as sequences"),
        (([[0.5]], [[0.1]], 1, 0, 9, 0.0), "seconds for each depth, or none"),
        (([[0.5, 0.2]], [[]], 1, 0, 9, 0.0), "more drafts than MTP layers"),
        (([[0.5, 0.2], []], [[]] * 2, 2, 0, 9, 0.0), "more drafts than MTP layers"),
        (([[math.nan]], [[]], 1, 0, 9, 0.0), "gain is not finite"),
        (([[0.5]], [[]], 1, 2**63 - 1, 9, 0.0), "expected 0 to 16,777,216 rows"),
        (([[0.5]], [[]], 2**63 - 1, 1, 9, 0.0), "expected 1 to 16,777,216 rows"),
        (([[0.5]], [[]], 1 << 24, 1, 9, 0.0), "at most 16,777,216"),
        (([[0.5]], [[]], 0, 2, 9, 0.0), "expected 1 to 16,777,216 rows"),
        (([[0.5]], [[]], 1, -1, 9, 0.0), "expected 0 to 16,777,216 rows"),
        (([["a"]], [[]], 1, 0, 9, 0.0), "real number"),
        (([3], [[]], 1, 0, 9, 0.0), "expected a sequence"),
        ((3, [[]], 1, 0, 9, 0.0), "expected a sequence"),
    ],
)
def test_what_cannot_be_searched_is_refused(arguments: tuple[object, ...], error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        fastest(MeasuredCosts(FIFTH), *arguments)  # type: ignore[arg-type]
