"""Synthetic routing looks like what was measured on OLMoE-1B-7B, and is repeatable."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from placement.errors import InputError
from placement.given.stats import RoutingStats, count_experts
from placement.given.traces import CODING, GENERAL, Domain, SyntheticRouter
from tests.placement.shapes import small_shape

# OLMoE-1B-7B: 16 MoE layers x 64 experts, top-8; documents of 64 tokens.
OLMOE = small_shape(num_moe_layers=16, num_experts=64, top_k=8)
ROUTER = SyntheticRouter(OLMOE, document_tokens=64)


def gini(counts: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Gini coefficient of expert use, float64 [layers]."""
    ordered = np.sort(counts.astype(np.float64), axis=1)
    n = ordered.shape[1]
    coefficient: NDArray[np.float64] = (
        2 * (np.arange(1, n + 1) * ordered).sum(axis=1) / (n * ordered.sum(axis=1)) - (n + 1) / n
    )
    return coefficient


def frequencies(domain: Domain, router: SyntheticRouter = ROUTER) -> NDArray[np.float64]:
    counts = count_experts(router.trace(domain, 6400), OLMOE.num_experts).astype(np.float64)
    normalised: NDArray[np.float64] = counts / counts.sum(axis=1, keepdims=True)
    return normalised


@pytest.mark.parametrize(
    ("domain", "least", "most", "measured"), [(GENERAL, 0.2, 0.35, 0.30), (CODING, 0.55, 0.7, 0.63)]
)
def test_skew_is_near_what_olmoe_shows(domain: Domain, least: float, most: float, measured: float) -> None:
    found = gini(count_experts(ROUTER.trace(domain, 6400), OLMOE.num_experts))
    assert least < found.mean() < most
    assert abs(found.mean() - measured) < 0.1
    assert found[-4:].mean() > found[:4].mean()


def test_domains_share_little_of_their_hot_sets() -> None:
    """OLMoE, general and coding: total variation 0.52."""
    variation = np.abs(frequencies(GENERAL) - frequencies(CODING)).sum(axis=1).mean() / 2
    assert 0.4 < variation < 0.6


@pytest.mark.parametrize("stickiness", [0.0, 0.5, 1.0])
def test_experts_stay_for_the_next_token_as_often_as_asked(stickiness: float) -> None:
    trace = replace(ROUTER, stickiness=stickiness).trace(GENERAL, 3200).reshape(50, 64, 16, 8)
    stayed = (trace[:, 1:, :, :, None] == trace[:, :-1, :, None, :]).any(axis=4).mean()
    chance = (trace[:, 40:, :, :, None] == trace[:, :24, :, None, :]).any(axis=4).mean()
    if stickiness == 1:
        assert stayed == 1
    else:
        assert stayed == pytest.approx(stickiness + (1 - stickiness) * chance, abs=0.04)


def test_drift_ends_where_the_other_domain_is() -> None:
    trace = ROUTER.trace(GENERAL, 12_800, drift_to=CODING)
    first, last = (count_experts(part, 64) / (len(part) * 8) for part in (trace[:2000], trace[-2000:]))

    def distance(part: NDArray[np.float64], domain: Domain) -> float:
        return float(np.abs(part - frequencies(domain)).sum(axis=1).mean())

    assert distance(first, GENERAL) < distance(first, CODING)
    assert distance(last, CODING) < distance(last, GENERAL)


def test_a_token_chooses_distinct_experts_the_model_has() -> None:
    trace = ROUTER.trace(CODING, 300)
    assert trace.shape == (300, 16, 8)
    assert (np.diff(trace.astype(int), axis=2) > 0).all()
    RoutingStats.from_trace(OLMOE, trace, "synthetic")


def test_seeds_decide_everything() -> None:
    assert np.array_equal(ROUTER.trace(CODING, 200), ROUTER.trace(CODING, 200))
    held_out = ROUTER.trace(CODING, 6400, stream_seed=1)
    assert not np.array_equal(held_out, ROUTER.trace(CODING, 6400))
    other_text = count_experts(held_out, 64) / (6400 * 8)
    assert np.abs(other_text - frequencies(CODING)).sum(axis=1).mean() / 2 < 0.15
    other_model = replace(ROUTER, seed=1)
    assert np.abs(frequencies(CODING, other_model) - frequencies(CODING)).sum(axis=1).mean() / 2 > 0.4


def test_a_long_stream_takes_bounded_memory() -> None:
    tracemalloc.start()
    num_tokens = sum(len(chunk) for chunk in ROUTER.stream(GENERAL, 30_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert num_tokens == 30_000
    assert peak < 16 * 2**20


def test_impossible_routers_are_refused() -> None:
    with pytest.raises(InputError, match="top_k 8: expected at most 4"):
        SyntheticRouter(small_shape(num_experts=4, top_k=8)).trace(GENERAL, 10)
    with pytest.raises(InputError, match="stickiness: expected 0 to 1, found 2"):
        replace(ROUTER, stickiness=2).trace(GENERAL, 10)
