"""Bytes and comparisons for a reader."""

from __future__ import annotations

import pytest

from placement.units import compared, gain_of, size


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1.0 kB"),
        (8_847_360, "8.8 MB"),
        (128_000_000_000, "128.0 GB"),
        (2_500_000_000_000, "2.50 TB"),
        (-1_500, "-1.5 kB"),
    ],
)
def test_bytes_are_shown_in_the_largest_unit_that_leaves_a_whole_part(num_bytes: int, text: str) -> None:
    assert size(num_bytes) == text


@pytest.mark.parametrize(
    ("ratio", "sentence", "cell"),
    [
        (0.9994, "0.1% slower", "-0.1%"),
        (0.9996, "as fast", "+0.0%"),
        (1.0004, "as fast", "+0.0%"),
        (1.1, "10.0% faster", "+10.0%"),
        (1.999, "99.9% faster", "+99.9%"),
        (1.9996, "2.0 times as fast", "2.0 times"),
        (9.94, "9.9 times as fast", "9.9 times"),
        (9.96, "10 times as fast", "10 times"),
        (15.345, "15 times as fast", "15 times"),
        (1234.5, "1,234 times as fast", "1,234 times"),
    ],
)
def test_from_twice_on_a_comparison_is_a_factor(ratio: float, sentence: str, cell: str) -> None:
    assert compared(ratio) == sentence
    assert gain_of(ratio - 1) == cell


def test_a_comparison_of_times_has_its_own_words() -> None:
    words = ("longer", "shorter", "as long")
    found = [compared(ratio, *words) for ratio in (0.5, 1.0, 1.5, 3.0)]
    assert found == ["50.0% shorter", "as long", "50.0% longer", "3.0 times as long"]
