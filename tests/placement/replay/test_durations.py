"""The histogram of durations against sorting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.replay.durations import DurationHistogram


@given(seed=st.integers(0, 1000), spread=st.floats(0, 3), parts=st.integers(1, 5))
def test_percentiles_are_nearest_ranks_within_half_a_bin(seed: int, spread: float, parts: int) -> None:
    values = np.exp(np.random.default_rng(seed).standard_normal(500) * spread - 4)
    histogram = DurationHistogram()
    for part in np.array_split(values, parts):
        histogram.add(part)
    summary = histogram.summary()
    assert summary is not None
    assert summary.mean == pytest.approx(values.mean())
    assert (summary.min, summary.max) == (values.min(), values.max())
    for found, share in ((summary.p50, 0.5), (summary.p95, 0.95), (summary.p99, 0.99)):
        assert found == pytest.approx(np.sort(values)[int(np.ceil(share * 500)) - 1], rel=5e-4)


def test_weights_count_as_repeats() -> None:
    values, weights = np.array([1.0, 2.0, 9.0]), np.array([3.0, 1.0, 4.0])
    weighted, repeated = DurationHistogram(), DurationHistogram()
    weighted.add(values, weights)
    repeated.add(values.repeat(weights.astype(int)))
    assert weighted.summary() == repeated.summary()


def test_equal_durations_have_exact_percentiles() -> None:
    histogram = DurationHistogram()
    histogram.add(np.full(7, 0.0123))
    summary = histogram.summary()
    assert summary is not None
    assert (summary.p50, summary.p99) == (0.0123, 0.0123)


def test_nothing_counted_has_no_summary() -> None:
    histogram = DurationHistogram()
    histogram.add(np.empty(0))
    assert histogram.summary() is None
