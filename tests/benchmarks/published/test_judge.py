"""Halves, and the range that follows from how far predictions were off."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.published.judge import Judged, coverage, median_error, range_of, worst_error
from benchmarks.published.measurements import Halves
from tests.benchmarks.published.made_up import measured

RATIOS = st.lists(st.floats(0.1, 10), min_size=1, max_size=60)


def test_halves_take_turns_by_name_within_a_class() -> None:
    halves = Halves.of([("d", "gpu"), ("a", "gpu"), ("c", "gpu"), ("b", "gpu"), ("a", "gpu"), ("x", "ram")])
    assert halves == Halves(frozenset({"a", "c", "x"}), frozenset({"b", "d"}))


def test_of_nineteen_ratios_the_second_from_each_end() -> None:
    found = range_of([float(n) for n in range(1, 20)])
    assert (found.low, found.high, found.count) == (2, 18, 19)
    assert found.covers == pytest.approx(0.8)


def test_of_few_the_extremes_and_what_they_cover() -> None:
    found = range_of([1.2, 0.9, 1.0])
    assert (found.low, found.high) == (0.9, 1.2)
    assert found.covers == pytest.approx(0.5)
    alone = range_of([1.1])
    assert (alone.low, alone.high, alone.covers) == (1.1, 1.1, 0.0)


@given(RATIOS, st.randoms())
def test_order_does_not_count(ratios: list[float], random) -> None:
    shuffled = list(ratios)
    random.shuffle(shuffled)
    assert range_of(shuffled) == range_of(ratios)


@given(RATIOS)
def test_a_wider_cover_is_no_narrower_range(ratios: list[float]) -> None:
    narrow, wide = range_of(ratios, cover=0.5), range_of(ratios, cover=0.9)
    assert wide.low <= narrow.low <= narrow.high <= wide.high


def test_as_many_of_the_next_lie_in_it_as_it_says() -> None:
    draw = np.random.default_rng(3)
    inside, promised = [], 0.0
    for _ in range(2000):
        sample = draw.lognormal(0, 0.3, 23)
        found = range_of(list(sample))
        inside.append(found.holds(draw.lognormal(0, 0.3)))
        promised = found.covers
    # Four standard deviations of the mean of so many.
    assert np.mean(inside) == pytest.approx(promised, abs=4 * (0.8 * 0.2 / 2000) ** 0.5)


def test_who_measured_often_does_not_narrow_the_range() -> None:
    devices = [0.6, 0.8, 1.0, 1.0, 1.1, 1.2, 1.3, 1.4, 1.9]
    often = [*devices, *[1.0] * 100]
    names = [str(n) for n in range(9)]
    # The third device was measured a hundred times more.
    assert range_of(often).low == range_of(often).high == 1.0
    by_device = range_of(often, [*names, *[names[2]] * 100])
    assert by_device.low == 0.6
    assert by_device.high == 1.9


def test_no_ratio_has_no_range() -> None:
    with pytest.raises(ValueError, match="at least one"):
        range_of([])


def test_errors_are_of_predictions_by_what_was_published() -> None:
    judged = [Judged(measured(["m4-max"]), speed) for speed in (40.0, 50.0, 70.0)]
    assert [round(one.error, 6) for one in judged] == [-0.2, 0.0, 0.4]
    assert median_error(judged) == pytest.approx(0.2)
    assert worst_error(judged) == pytest.approx(0.4)
    assert coverage(judged, range_of([0.9, 1.3])) == pytest.approx(2 / 3)
