"""How far a measured speed may lie from a predicted one, and which speeds differ by more."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.answers.prediction_range import (
    LikelySpeed,
    SpeedRange,
    is_promised,
    range_for,
    range_of,
    ranks,
)
from placement.given.cluster_spec import FiguresFrom
from placement.given.problem import PlanningProblem
from placement.hardware.spread import Range, packaged_spreads
from placement.holders import HolderTable
from placement.units import between
from tests.placement.boxes import device
from tests.placement.shapes import small_shape
from tests.placement.spreads import spreads

SHAPE = small_shape(num_moe_layers=2, num_experts=6, top_k=2)
SIZE = SHAPE.expert_bytes(16)


def problem(*sources: FiguresFrom) -> PlanningProblem:
    """A head and boxes, each of them with figures of another source."""
    devices = (
        replace(device("head" if not i else f"box{i}", 20, SIZE), figures_from=source)
        for i, source in enumerate(sources)
    )
    return PlanningProblem(SHAPE, tuple(devices), SIZE)


def everything_on(index: int) -> HolderTable:
    return HolderTable.from_single(np.full((2, 6), index, dtype=np.int64))


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        (("probed",), SpeedRange(0.95, 1.1, 20, 0.8, "probed")),
        (("catalogue", "probed"), SpeedRange(0.7, 1.2, 40, 0.8, "catalogue")),
        (("probed", "typed"), SpeedRange(0.7, 1.2, 40, 0.8, "typed")),
    ],
)
def test_the_widest_range_counts_and_typed_figures_have_the_catalogues(
    sources: tuple[FiguresFrom, ...], expected: SpeedRange
) -> None:
    assert range_of(sources, spreads()) == expected


def test_only_devices_that_a_step_asks_count() -> None:
    given = problem("probed", "probed", "typed")
    assert range_for(given, everything_on(1), spreads()).basis == "probed"
    assert range_for(given, everything_on(2), spreads()).basis == "typed"
    # Where the placement changes as it runs, any may be asked.
    assert range_for(given, None, spreads()).basis == "typed"


def test_the_heads_device_counts_without_experts_too() -> None:
    assert range_for(problem("catalogue", "probed"), everything_on(1), spreads()).basis == "catalogue"


def test_a_difference_counts_by_the_larger_side_of_the_wider_range() -> None:
    narrow, wide = SpeedRange(0.91, 1.05, 9, 0.8, "probed"), SpeedRange(0.9, 1.3, 9, 0.8, "typed")
    assert LikelySpeed(11.1, narrow).beats(LikelySpeed(10.0, narrow))
    assert not LikelySpeed(10.9, narrow).beats(LikelySpeed(10.0, narrow))
    assert not LikelySpeed(11.1, narrow).beats(LikelySpeed(10.0, wide))
    assert not LikelySpeed(12.9, wide).beats(LikelySpeed(10.0, narrow))
    assert LikelySpeed(13.1, wide).beats(LikelySpeed(10.0, narrow))


@pytest.mark.parametrize(
    ("low", "high", "margin"), [(0.8, 1.1, 0.25), (0.5, 1.2, 1.0), (0.9, 1.3, 0.3), (0.8, 1.25, 0.25)]
)
def test_a_gain_has_to_outlast_the_low_side_of_the_faster_one(low: float, high: float, margin: float) -> None:
    within = Range(low, high, 9, 0.8)
    assert within.margin == pytest.approx(margin)
    assert not is_promised(1 + 0.99 * margin, within)
    assert is_promised(1 + 1.01 * margin, within)
    # What is promised of the faster is still faster at its low side, and than the slower at its high side.
    assert (1 + 1.01 * margin) * low > 1
    assert 1 + 1.01 * margin > high


def test_of_two_ranges_the_wider_one_counts() -> None:
    narrow, wide = Range(0.95, 1.05, 9, 0.8), Range(0.8, 1.1, 9, 0.8)
    assert is_promised(1.06, narrow)
    for both in ((narrow, wide), (wide, narrow)):
        assert not is_promised(1.24, *both)
        assert is_promised(1.26, *both)


@given(st.lists(st.floats(0.1, 1000), min_size=1, max_size=20))
def test_who_shares_a_place_is_not_beaten_by_its_first_and_others_are(tokens_per_s: list[float]) -> None:
    likely = SpeedRange(0.8, 1.1, 9, 0.8, "typed")
    speeds = [LikelySpeed(speed, likely) for speed in sorted(tokens_per_s, reverse=True)]
    found = ranks(speeds)
    assert found[0] == 1
    for index, place in enumerate(found):
        assert place <= index + 1
        assert not speeds[place - 1].beats(speeds[index])
        if index and place != found[index - 1]:
            assert place == index + 1
            assert speeds[found[index - 1] - 1].beats(speeds[index])


def test_the_packaged_ranges_hold_what_is_predicted_and_a_probe_says_more() -> None:
    nobody, probed = (range_of((source,), packaged_spreads()) for source in ("catalogue", "probed"))
    for likely in (nobody, probed):
        assert 0 < likely.low < 1 < likely.high
        assert likely.covers >= 0.8
    assert probed.high / probed.low < nobody.high / nobody.low


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (32.6, 47.2, "33 to 47"),
        (0.312, 0.96, "0.31 to 0.96"),
        (8.94, 9.96, "8.9 to 10"),
        (99.6, 123.4, "100 to 123"),
    ],
)
def test_a_range_has_two_digits(low: float, high: float, words: str) -> None:
    assert between(low, high) == words
