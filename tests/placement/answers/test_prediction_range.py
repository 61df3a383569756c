"""How far a measured speed may lie from a predicted one, and which speeds differ by more."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.answers.prediction_range import (
    LikelySpeed,
    Range,
    margin_between,
    places,
    range_for,
    range_of,
)
from placement.given.cluster_spec import FiguresFrom
from placement.given.problem import PlanningProblem
from placement.hardware.spread import packaged_spreads
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
        (("probed",), Range(0.95, 1.1, "probed", 20, 0.8)),
        (("catalogue", "probed"), Range(0.7, 1.2, "catalogue", 40, 0.8)),
        (("probed", "typed"), Range(0.7, 1.2, "typed", 40, 0.8)),
    ],
)
def test_the_widest_range_counts_and_typed_figures_have_the_catalogues(
    sources: tuple[FiguresFrom, ...], expected: Range
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
    narrow, wide = Range(0.9, 1.05, "probed", 9, 0.8), Range(0.9, 1.3, "typed", 9, 0.8)
    assert LikelySpeed(11.1, narrow).beats(LikelySpeed(10.0, narrow))
    assert not LikelySpeed(10.9, narrow).beats(LikelySpeed(10.0, narrow))
    assert not LikelySpeed(11.1, narrow).beats(LikelySpeed(10.0, wide))
    assert not LikelySpeed(12.9, wide).beats(LikelySpeed(10.0, narrow))
    assert LikelySpeed(13.1, wide).beats(LikelySpeed(10.0, narrow))


def test_two_placements_on_the_same_devices_differ_surely_by_less() -> None:
    given = problem("catalogue", "probed")
    # The same two with the head on the other one.
    tiers = [
        replace(one.tier, node=other.tier.node)
        for one, other in zip(given.devices, given.devices[::-1], strict=True)
    ]
    moved = replace(
        given, devices=tuple(replace(d, tier=t) for d, t in zip(given.devices, tiers, strict=True))
    )
    both = HolderTable.from_single(np.array([[0, 1] * 3] * 2))
    assert margin_between((given, both), (moved, both), spreads()) == pytest.approx(0.05)
    # The second box's memory may be off by another share than the head's.
    assert margin_between((given, both), (given, everything_on(0)), spreads()) == pytest.approx(0.3)
    probed = problem("probed", "probed")
    assert margin_between((probed, everything_on(0)), (probed, both), spreads()) == pytest.approx(0.1)


@given(st.lists(st.floats(0.1, 1000), min_size=1, max_size=20))
def test_who_shares_a_place_is_not_beaten_by_its_first_and_others_are(tokens_per_s: list[float]) -> None:
    likely = Range(0.8, 1.1, "typed", 9, 0.8)
    speeds = [LikelySpeed(speed, likely) for speed in sorted(tokens_per_s, reverse=True)]
    found = places(speeds)
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
