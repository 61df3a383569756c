"""Pairs that differ in placement alone, and the range of their ratios."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.published.judge import Judged
from benchmarks.published.probed import probed_range, probed_ratios
from benchmarks.published.same_boxes import published_alike, range_of_pairs
from tests.benchmarks.published.catalogues import measured

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


def judged(predicted: float, **fields: Any) -> Judged:
    boxes = fields.pop("boxes", 1)
    fields = {"build": "b1", "boxes": [["strix-halo"]] * boxes, "link": "usb4-net", **fields}
    return Judged(measured([], "layers" if boxes > 1 else "all", **fields), predicted)


def test_a_post_s_placements_are_compared_with_each_other_alone() -> None:
    one, two = judged(50), judged(25, boxes=2)
    assert list(published_alike([one, two])) == [("strix-halo", [1.0, 2.0])]
    for other in (
        {"build": "b2"},
        {"url": "elsewhere"},
        {"context": 8},
        {"quant": "Q8_0"},
        {"engine": "mlx"},
    ):
        alone = list(published_alike([one, judged(25, boxes=2, **other)]))
        assert alone == [("strix-halo", [1.0]), ("strix-halo", [2.0])]


def test_without_a_build_and_of_the_same_placement_nothing_is_compared() -> None:
    assert list(published_alike([judged(50, build=None), judged(25, boxes=2, build=None)])) == []
    assert list(published_alike([judged(50), judged(25)])) == [("strix-halo", [1.0])]


def test_our_own_sets_are_all_that_the_range_of_probed_boxes_counts() -> None:
    sets = [alike for session in probed_ratios() for alike in session]
    assert sum(map(len, sets)) == probed_range().count
    assert sum(len(alike) > 1 for alike in sets) >= 10
