"""Pairs that differ in placement alone, and the range of their ratios."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.published.probed import played_ratios, probed_range, probed_ratios
from benchmarks.published.same_boxes import range_of_pairs, same_boxes_range

# So that equal ratios of them, and of them times powers of two, are equal floats.
ALIKE = st.lists(st.integers(4, 16).map(float), min_size=2, max_size=5)
POWERS = st.integers(-2, 2).map(lambda power: 2.0**power)


@given(st.lists(ALIKE, min_size=1, max_size=6), st.lists(POWERS, min_size=6, max_size=6))
def test_what_is_wrong_in_all_speeds_of_a_set_does_not_count(
    sets: list[list[float]], factors: list[float]
) -> None:
    found = range_of_pairs(enumerate(sets))
    wrong = [[factor * ratio for ratio in alike] for alike, factor in zip(sets, factors, strict=False)]
    other = range_of_pairs(enumerate(wrong))
    assert other == found
    assert found.low * found.high == pytest.approx(1)
    assert found.low <= 1 <= found.high


def test_speeds_of_different_sets_are_no_pair() -> None:
    found = range_of_pairs([("a", [1.0, 1.1]), ("a", [5.0]), ("b", [2.0, 2.0])])
    assert found.count == 2
    assert found.high == pytest.approx(1.1)
    with pytest.raises(ValueError, match="at least one"):
        range_of_pairs([("a", [1.0]), ("b", [2.0])])


def test_who_measured_often_counts_once() -> None:
    """Nine near pairs and one far one: the far one is a tenth of ten sessions, and half of two."""
    near, far = [1.0, 1.02], [1.0, 1.5]
    assert range_of_pairs([*((n, near) for n in range(9)), (9, far)]).high == pytest.approx(1.02)
    assert range_of_pairs([*((0, near) for _ in range(9)), (1, far)]).high == pytest.approx(1.5)


def test_our_own_sets_are_all_that_the_range_of_probed_boxes_counts() -> None:
    sets = [alike for session in probed_ratios() for alike in session]
    assert sum(map(len, sets)) == probed_range().count
    assert sum(len(alike) > 1 for alike in sets) >= 10


def test_played_memory_says_of_differences_alone() -> None:
    sets = [alike for session in (*probed_ratios(), *played_ratios()) for alike in session]
    assert same_boxes_range().count == sum(len(alike) * (len(alike) - 1) // 2 for alike in sets)
    (border,) = played_ratios()
    assert [len(alike) for alike in border] == [3] * 10 + [2] * 2
