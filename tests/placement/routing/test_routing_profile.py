"""Routing profiles forget at the stated rate and say how far to believe what they hold."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.errors import InputError, RoutingFileError
from placement.given.apportion import apportion
from placement.given.stats import RoutingStats
from placement.routing.routing_profile import RoutingProfile, smooth
from tests.placement.real_routing import olmoe_documents
from tests.placement.shapes import small_shape

SHAPE = small_shape()


def random_trace(num_tokens: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.int64]]:
    scores = np.random.default_rng(seed).random((num_tokens, SHAPE.num_moe_layers, SHAPE.num_experts))
    return np.argsort(scores, axis=2)[:, :, : SHAPE.top_k]


def test_a_token_counts_half_after_one_half_life() -> None:
    profile = RoutingProfile.empty(SHAPE, half_life_tokens=7)
    first = profile.observe(np.tile([0, 1], (1, 3, 1)))
    later = first.observe(np.tile([2, 3], (7, 3, 1)))
    assert np.allclose(later.weights[:, 0], 0.5 * first.weights[:, 0])
    assert np.allclose(later.weights[:, 4:], 0)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.floats(0.5, 1e4) | st.just(math.inf))
def test_a_profile_does_not_depend_on_how_the_text_was_cut(cuts: list[int], half_life: float) -> None:
    trace = random_trace(sum(cuts))
    whole = RoutingProfile.empty(SHAPE, half_life).observe(trace)
    parts = RoutingProfile.empty(SHAPE, half_life)
    for part in np.split(trace, np.cumsum(cuts)[:-1]):
        parts = parts.observe(part)
    assert np.allclose(parts.weights, whole.weights)
    assert math.isclose(parts.num_tokens, whole.num_tokens)
    assert np.allclose(whole.frequencies().sum(axis=1), SHAPE.top_k)


def test_an_infinite_half_life_counts() -> None:
    stats = RoutingStats.from_trace(SHAPE, random_trace(100), "text")
    profile = RoutingProfile.empty(SHAPE).observe_counts(stats)
    assert np.array_equal(profile.weights, stats.counts.astype(float))
    assert profile.num_tokens == 100
    assert np.allclose(profile.frequencies(), stats.frequencies())


@pytest.mark.parametrize("half_life", [5.0, 1e9, math.inf])
def test_counts_without_order_weigh_as_much_as_the_tokens_they_come_from(half_life: float) -> None:
    stats = RoutingStats.from_trace(SHAPE, random_trace(64), "text")
    in_order = RoutingProfile.empty(SHAPE, half_life).observe_counts(stats)
    mixed = RoutingProfile.empty(SHAPE, half_life).observe_counts(stats.without_trace())
    assert math.isclose(mixed.num_tokens, in_order.num_tokens, rel_tol=1e-9)
    assert np.allclose(mixed.weights.sum(axis=1), in_order.weights.sum(axis=1))
    assert np.allclose(mixed.frequencies(), stats.frequencies())


@pytest.mark.parametrize(
    ("trace", "message"),
    [
        (np.zeros((4, 3, 3), dtype=int), r"expected whole numbers \[tokens, 3, 2\]"),
        (np.zeros((4, 3, 2)), "found float64"),
        (np.full((4, 3, 2), 10), "expected experts 0 to 9"),
        (np.full((4, 3, 2), -1), "expected experts 0 to 9"),
    ],
)
def test_a_wrong_trace_is_refused(trace: np.ndarray[Any, Any], message: str) -> None:
    with pytest.raises(RoutingFileError, match=message):
        RoutingProfile.empty(SHAPE).observe(trace)


@pytest.mark.parametrize("half_life", [0.0, -1.0, math.nan])
def test_a_half_life_must_be_positive(half_life: float) -> None:
    with pytest.raises(InputError, match="half-life"):
        RoutingProfile.empty(SHAPE, half_life)


def test_nothing_seen_is_even_use_without_confidence() -> None:
    smoothed = smooth(RoutingProfile.empty(SHAPE).weights, SHAPE.top_k)
    assert np.allclose(smoothed.frequencies, SHAPE.top_k / SHAPE.num_experts)
    assert np.all(smoothed.confidence == 0)


def test_confidence_grows_with_documents_and_not_with_their_length() -> None:
    documents = olmoe_documents("general").astype(np.int64)
    few, many = (smooth(documents[:n].sum(axis=0), 8, document_tokens=64).confidence for n in (2, 50))
    assert np.all(few < many)
    assert np.all((few > 0) & (many < 1))
    long = smooth(documents[:2].sum(axis=0) * 100, 8, document_tokens=6400)
    assert np.all(long.effective_choices < 2 * (130 + 1))


@pytest.mark.parametrize("domain", ["general", "coding"])
@pytest.mark.parametrize("num_documents", [1, 4, 16])
def test_smoothing_predicts_held_out_documents_better_than_raw_counts(
    domain: str, num_documents: int
) -> None:
    documents = olmoe_documents(domain).astype(np.float64)
    gains = []
    for seed in range(10):
        order = np.random.default_rng(seed).permutation(len(documents))
        seen = documents[order[:num_documents]].sum(axis=0)
        rest = documents[order[num_documents:]].sum(axis=0)
        rest /= rest.sum(axis=1, keepdims=True)
        raw = (seen + 1e-3) / (seen + 1e-3).sum(axis=1, keepdims=True)
        smoothed = smooth(seen, 8, document_tokens=64).frequencies / 8
        gains.append((rest * (np.log(smoothed) - np.log(raw))).sum(axis=1).mean())
    assert np.mean(gains) > 0


@given(
    st.integers(1, 6),
    st.integers(1, 10_000),
    st.integers(0, 2**32 - 1),
    st.floats(0.01, 10, exclude_min=True),
)
def test_apportioned_counts_add_up_and_are_off_by_less_than_one(
    rows: int, total: int, seed: int, skew: float
) -> None:
    weights = np.random.default_rng(seed).lognormal(sigma=skew, size=(rows, 9))
    counts = apportion(weights, total)
    exact = weights / weights.sum(axis=1, keepdims=True) * total
    assert np.all(counts.sum(axis=1) == total)
    assert np.all(np.abs(counts - exact) < 1)


def test_a_profile_becomes_statistics_of_as_many_tokens_as_it_remembers() -> None:
    profile = RoutingProfile.empty(SHAPE, 20).observe(random_trace(300))
    stats = profile.to_stats(SHAPE, "lately")
    stats.check(SHAPE)
    assert (stats.num_tokens, stats.source) == (round(profile.num_tokens), "lately")
    assert np.abs(stats.counts - profile.weights).max() < 1 + SHAPE.top_k
    with pytest.raises(InputError, match="expected at least one token"):
        RoutingProfile.empty(SHAPE).to_stats(SHAPE, "nothing")
