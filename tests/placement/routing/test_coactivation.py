"""Joint routing: pairs are counted right, merge, and show dependence where there is some."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from placement.errors import InputError, RoutingFileError
from placement.given.stats import RoutingStats
from placement.routing.coactivation import CoActivation
from tests.placement.shapes import small_shape

SHAPE = small_shape()


def random_trace(num_tokens: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.int64]]:
    scores = np.random.default_rng(seed).random((num_tokens, SHAPE.num_moe_layers, SHAPE.num_experts))
    return np.argsort(scores, axis=2)[:, :, : SHAPE.top_k]


def one_hot(trace: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """int [layers, tokens, experts]."""
    chosen: np.ndarray[Any, np.dtype[np.int64]] = np.eye(SHAPE.num_experts, dtype=np.int64)[trace].sum(axis=2)
    return chosen.transpose(1, 0, 2)


def test_pairs_are_those_of_the_trace() -> None:
    trace = random_trace(300)
    joint = CoActivation.from_trace(SHAPE, trace, "text")
    chosen = one_hot(trace)
    for row in range(SHAPE.num_moe_layers):
        assert np.array_equal(joint.within[row].dense(), np.triu(chosen[row].T @ chosen[row], k=1))
    for row in range(SHAPE.num_moe_layers - 1):
        assert np.array_equal(joint.between[row].dense(), chosen[row].T @ chosen[row + 1])
    assert np.array_equal(joint.counts, chosen.sum(axis=1))


def test_merging_parts_equals_the_whole() -> None:
    trace = random_trace(200)
    whole = CoActivation.from_trace(SHAPE, trace, "text")
    merged = CoActivation.from_trace(SHAPE, trace[:7], "a").merge(
        CoActivation.from_trace(SHAPE, trace[7:], "b")
    )
    assert merged.num_tokens == 200
    for mine, theirs in zip((*merged.within, *merged.between), (*whole.within, *whole.between), strict=True):
        assert np.array_equal(mine.pairs, theirs.pairs)
        assert np.array_equal(mine.tokens, theirs.tokens)
    other = CoActivation.from_trace(small_shape(num_experts=12), trace, "c")
    with pytest.raises(RoutingFileError, match="cannot merge joint routing"):
        whole.merge(other)


def test_only_pairs_that_occurred_take_space() -> None:
    joint = CoActivation.from_trace(SHAPE, random_trace(1), "one token")
    assert [len(pairs.pairs) for pairs in joint.within] == [1, 1, 1]
    assert [len(pairs.pairs) for pairs in joint.between] == [4, 4]
    often = joint.merge(joint).between[0].at_least(2)
    assert len(often.pairs) == 4
    assert len(often.at_least(3).pairs) == 0


def test_independent_routing_has_no_lift() -> None:
    joint = CoActivation.from_trace(SHAPE, random_trace(40_000), "even")
    assert np.abs(joint.lift_between(0) - 1).max() < 0.1
    within = joint.lift_within(0)
    assert np.abs(within[~np.eye(SHAPE.num_experts, dtype=bool)] - 1).max() < 0.1
    assert np.all(np.diag(within) == 1)


def test_experts_that_always_fire_together_stand_out() -> None:
    pairs = np.array([[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]])
    kind = np.random.default_rng(0).integers(0, 5, 2000)
    trace = np.stack([pairs[kind], pairs[kind], pairs[(kind + 1) % 5]], axis=1)
    joint = CoActivation.from_trace(SHAPE, trace, "pairs")
    assert joint.lift_within(0)[0, 1] > 5
    assert joint.lift_within(0)[0, 2] == 0
    assert joint.lift_between(1)[0, 2] == pytest.approx(5, rel=0.15)
    assert joint.lift_between(1)[0, 0] == 0


def test_counts_alone_are_not_joint() -> None:
    stats = RoutingStats.from_trace(SHAPE, random_trace(5), "a").without_trace()
    with pytest.raises(RoutingFileError, match="which experts fire together"):
        CoActivation.from_stats(SHAPE, stats)
    joint = CoActivation.from_trace(SHAPE, random_trace(5), "a")
    with pytest.raises(InputError, match="layer pair 2: expected 0 to 1"):
        joint.lift_between(2)
