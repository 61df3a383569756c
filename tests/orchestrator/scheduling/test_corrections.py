"""Corrections by size: accidents move them little, changes are followed, neighbours say something."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest

from orchestrator.scheduling.native import Corrections


def measured(sizes: dict[int, float], noise: float, steps: int, seed: int = 0) -> Corrections:
    """So many measurements of each size, of these logarithms and with that noise."""
    luck, corrections = random.Random(seed), Corrections(0.0)
    for step in range(steps):
        for size, value in sizes.items():
            corrections.learn(size, value + luck.gauss(0, noise), step)
    return corrections


def test_nothing_is_corrected_before_something_was_measured() -> None:
    corrections = Corrections(0.03**2)
    assert not corrections.are_known
    assert corrections.at(1.0) == 0
    corrections.learn(8, 0.3, 1)
    assert corrections.are_known
    assert [corrections.at(0.0), corrections.at(9.0)] == pytest.approx([0.3] * 2)
    assert corrections.common == 0, "the first one says what is usual"


@pytest.mark.parametrize("noise", [0.02, 0.12])
def test_one_accident_moves_little_and_a_change_is_followed(noise: float) -> None:
    corrections, luck = measured({4: 0.0}, noise, 200), random.Random(1)
    corrections.learn(4, 0.5, 201)
    assert corrections.at(math.log(4)) == pytest.approx(0, abs=0.04)
    for step in range(202, 222):
        corrections.learn(4, 0.5 + luck.gauss(0, noise), step)
    assert corrections.at(math.log(4)) == pytest.approx(0.5, abs=0.06)


def test_an_accident_of_a_size_that_was_not_measured_for_long_moves_little() -> None:
    """Else it seems slow, is not used any more, and so is never measured again."""
    corrections = measured({2: 0.0, 4: 0.0}, 0.05, 50)
    for step in range(50, 2000):
        corrections.learn(2, 0.0, step)
    corrections.learn(4, 0.7, 2000)
    assert 0 < corrections.at(math.log(4)) < 0.1
    for step in range(2001, 2031):
        corrections.learn(4, 0.4, step)
    assert corrections.at(math.log(4)) == pytest.approx(0.4, abs=0.06)


def test_steps_between_which_a_box_is_busy_are_no_change() -> None:
    """Of every ten, three on end are far off."""
    luck, corrections = random.Random(0), Corrections(0.0)
    for step in range(500):
        busy = 0.6 * (step % 10 > 6)
        corrections.learn(4, busy + luck.gauss(0, 0.05), step)
    assert corrections.at(math.log(4)) == pytest.approx(0.18, abs=0.12)


def test_a_size_that_was_measured_long_ago_follows_its_neighbours() -> None:
    corrections = Corrections(0.03**2)
    for step in range(4):
        corrections.learn(7, 0.3, step)
        corrections.learn(8, 0.3, step)
    for step in range(4, 1500):
        corrections.learn(7, 0.0, step)
        corrections.learn(10, 0.0, step)
    assert 0 < corrections.at(math.log(8)) < 0.1
    assert corrections.at(math.log(7)) == pytest.approx(0, abs=0.01)


def test_sizes_of_one_measurement_each_are_the_mean_of_a_random_walk_through_them() -> None:
    """By solving for all at once: each varies by 0.1, and by 0.17 to one that is e times as large."""
    sizes, found = np.array([2, 5, 7, 48]), np.array([0.3, -0.1, 0.05, 0.2])
    corrections = Corrections(0.0)
    for size, value in zip(sizes.tolist(), found.tolist(), strict=True):
        corrections.learn(size, value, 0)
    between = np.diff(np.eye(4), axis=0) / np.sqrt(0.17**2 * np.diff(np.log(sizes)))[:, None]
    mean = np.linalg.solve(between.T @ between + np.eye(4) / 0.1**2, found / 0.1**2)
    assert [corrections.at(math.log(size)) for size in sizes] == pytest.approx(mean.tolist(), rel=1e-6)
    assert corrections.at(math.log(300)) == pytest.approx(mean[3], rel=1e-6)
    six = (mean[1] * math.log(7 / 6) + mean[2] * math.log(6 / 5)) / math.log(7 / 5)
    assert corrections.at(math.log(6)) == pytest.approx(six, rel=1e-6)


@pytest.mark.parametrize(
    "arguments",
    [
        (0.5, 0.0, 1),
        (math.nan, 0.0, 1),
        (4, math.inf, 1),
        (4, math.nan, 1),
        (4, 1e200, 1),
        (4, 0.0, -1),
        (4, 0.0, 2**63 - 1),
    ],
)
def test_what_is_no_measurement_is_refused(arguments: tuple[float, float, int]) -> None:
    corrections = Corrections(0.0)
    with pytest.raises(ValueError, match=r"expected a (size|step)"):
        corrections.learn(*arguments)
    assert not corrections.are_known


def test_steps_go_on() -> None:
    corrections = Corrections(0.0)
    corrections.learn(4, 0.0, 9)
    with pytest.raises(ValueError, match="a step that is not before the last one"):
        corrections.learn(8, 0.0, 8)


def test_sizes_that_are_measured_alike_often_keep_what_is_their_own() -> None:
    corrections = measured({1: 0.4, 2: 0.0, 4: -0.2, 24: 0.3}, 0.1, 600)
    for size, value in ((1, 0.4), (2, 0.0), (4, -0.2), (24, 0.3)):
        assert corrections.at(math.log(size)) == pytest.approx(value, abs=0.06)
    between = corrections.at((math.log(1) + math.log(2)) / 2)
    assert between == pytest.approx(0.2, abs=0.06)


@pytest.mark.parametrize("drift", [-1.0, math.nan, math.inf])
def test_what_is_no_variance_is_refused(drift: float) -> None:
    with pytest.raises(ValueError, match="expected a variance"):
        Corrections(drift)


def test_a_box_that_gets_slower_for_a_while_gets_slower_for_all_sizes() -> None:
    """Also for those that are not measured meanwhile, and what they differ by stays."""
    luck, corrections = random.Random(0), Corrections(0.03**2)

    def measure(steps: range, sizes: Sequence[int], busy: float) -> None:
        for step in steps:
            size = sizes[step // 4 % len(sizes)]
            corrections.learn(size, busy + 0.2 * (size > 4) + luck.gauss(0, 0.05), step)

    measure(range(400), (4, 8), 0.0)
    for start in range(400, 2000, 40):
        measure(range(start, start + 20), (4,), 0.4)
        assert corrections.at(math.log(8)) == pytest.approx(0.6, abs=0.1)
        assert corrections.at(math.log(8)) - corrections.at(math.log(4)) == pytest.approx(0.2, abs=0.04)
        measure(range(start + 20, start + 40), (4,), 0.0)
