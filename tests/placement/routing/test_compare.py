"""Comparing statistics reproduces the figures published for the real traces."""

from __future__ import annotations

import numpy as np
import pytest

from placement.errors import InputError, RoutingFileError
from placement.given.stats import RoutingStats
from placement.routing.compare import compare
from tests.placement.real_routing import OLMOE, olmoe_stats
from tests.placement.shapes import small_shape


def test_general_text_and_code_use_different_experts() -> None:
    found = compare(olmoe_stats("general"), olmoe_stats("coding"))
    assert found.total_variation.mean() == pytest.approx(0.52, abs=0.005)
    assert found.hot_overlap.mean() == pytest.approx(0.21, abs=0.005)
    assert found.log_popularity_correlation.mean() == pytest.approx(0.01, abs=0.005)
    assert found.summary() == (
        "total variation 0.52, 21% of the hottest 25% shared, correlation of ln popularity 0.01"
    )


def test_statistics_are_like_themselves() -> None:
    stats = olmoe_stats("coding")
    found = compare(stats, stats)
    assert np.all(found.total_variation == 0)
    assert np.all(found.hot_overlap == 1)
    assert np.allclose(found.log_popularity_correlation, 1)


def test_disjoint_experts_have_nothing_in_common() -> None:
    shape = small_shape(num_experts=8, top_k=2)
    low, high = np.zeros((2, 3, 8), dtype=int)
    low[:, :4], high[:, 4:] = 5, 5
    low_stats, high_stats = (RoutingStats.from_counts(shape, c, 10, "half") for c in (low, high))
    found = compare(low_stats, high_stats, hot_share=0.5)
    assert np.all(found.total_variation == 1)
    assert np.all(found.hot_overlap == 0)
    assert np.all(found.log_popularity_correlation == pytest.approx(-1))


def test_even_use_correlates_with_nothing() -> None:
    even = RoutingStats.from_counts(OLMOE, np.full((16, 64), 8), 64, "even")
    assert np.all(compare(even, olmoe_stats("coding")).log_popularity_correlation == 0)


def test_only_the_same_model_compares() -> None:
    other = RoutingStats.from_counts(small_shape(), np.full((3, 10), 2), 10, "small")
    with pytest.raises(RoutingFileError, match="comparison: made for 'small'"):
        compare(olmoe_stats("general"), other)
    with pytest.raises(InputError, match="hot share"):
        compare(other, other, hot_share=0)
