"""Bytes for a reader."""

from __future__ import annotations

import pytest

from placement.units import size


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
