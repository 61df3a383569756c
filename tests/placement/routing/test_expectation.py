"""Expected remote layers and shares agree with counting, and with exact enumeration on small cases."""

from __future__ import annotations

from itertools import combinations
from math import comb, prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.given.stats import RoutingStats
from placement.holders import HolderTable
from placement.routing.expectation import (
    absence_probability,
    remote_layers_per_step,
    sampling_weights,
    share_of_activations,
)
from tests.placement.shapes import small_shape


@given(seed=st.integers(0, 2**16), skew=st.floats(0.0, 1.5))
def test_absence_is_exact_for_choices_drawn_by_weight(seed: int, skew: float) -> None:
    """Every subset of 3 of 7 with probability ~ product of weights: enumerate it and compare."""
    generator = np.random.default_rng(seed)
    weights = np.exp(skew * generator.standard_normal(7))
    subsets = list(combinations(range(7), 3))
    probabilities = np.array([prod(weights[list(s)]) for s in subsets])
    probabilities /= probabilities.sum()
    frequencies = np.zeros((1, 7))
    for subset, probability in zip(subsets, probabilities, strict=True):
        frequencies[0, list(subset)] += probability
    members = generator.random((1, 7)) < 0.3
    expected = sum(p for s, p in zip(subsets, probabilities, strict=True) if not members[0, list(s)].any())
    assert absence_probability(frequencies, members) == pytest.approx(expected, abs=1e-4)


def test_even_frequencies_give_the_hypergeometric_absence() -> None:
    frequencies = np.full((1, 288), 8 / 288)
    members = np.arange(288)[None] < 20
    assert absence_probability(frequencies, members) == pytest.approx(comb(268, 8) / comb(288, 8))


def test_experts_never_or_always_chosen_keep_their_meaning() -> None:
    frequencies = np.array([[1.0, 0.5, 0.5, 0.0]])
    assert absence_probability(frequencies, np.array([[False, False, False, True]])) == pytest.approx(1.0)
    assert absence_probability(frequencies, np.array([[True, False, False, False]])) == pytest.approx(
        0, abs=1e-5
    )
    assert sampling_weights(frequencies)[0, 3] == 0


def test_counts_predict_what_an_independent_trace_shows() -> None:
    shape = small_shape(num_moe_layers=4, num_experts=64, top_k=4)
    generator = np.random.default_rng(1)
    popularity = 1.2 * generator.standard_normal((4, 64))
    scores = popularity + generator.gumbel(size=(20_000, 4, 64))
    stats = RoutingStats.from_trace(shape, np.argpartition(-scores, 4, axis=2)[:, :, :4], "synthetic")
    table = HolderTable.from_single((generator.random((4, 64)) < 0.1).astype(int))
    home = np.array([True, False])
    for tokens in (1, 2, 4):
        measured = remote_layers_per_step(table, stats, home, tokens)
        assert remote_layers_per_step(table, stats.without_trace(), home, tokens) == pytest.approx(
            measured, rel=0.03
        )


def test_a_replica_at_home_spares_the_remote_layer() -> None:
    shape = small_shape(num_moe_layers=1, num_experts=4, top_k=1)
    stats = RoutingStats.from_trace(shape, np.array([[[3]], [[0]]]), "by hand")
    home = np.array([True, False])
    alone = np.array([[[True, True, True, False]], [[False, False, False, True]]])
    assert remote_layers_per_step(HolderTable.from_masks(alone), stats, home) == 0.5
    assert remote_layers_per_step(HolderTable.from_masks(np.ones((2, 1, 4), dtype=bool)), stats, home) == 0


def test_a_step_of_several_tokens_is_remote_if_any_of_them_is() -> None:
    shape = small_shape(num_moe_layers=1, num_experts=4, top_k=1)
    stats = RoutingStats.from_trace(shape, np.array([[[3]], [[0]], [[0]], [[0]]]), "by hand")
    table = HolderTable.from_single(np.array([[0, 0, 0, 1]]))
    assert remote_layers_per_step(table, stats, np.array([True, False]), tokens_per_step=2) == 0.5


def test_shares_of_replicas_go_to_the_local_worker_or_are_split() -> None:
    shape = small_shape(num_moe_layers=1, num_experts=4, top_k=1)
    stats = RoutingStats.from_counts(shape, np.array([[1, 1, 1, 1]]), 4, "even")
    masks = np.array([[[1, 1, 1, 0]], [[0, 0, 1, 1]]], dtype=bool)
    table = HolderTable.from_masks(masks)
    assert share_of_activations(table, stats, 2).tolist() == [0.625, 0.375]
    assert share_of_activations(table, stats, 2, local_worker=0).tolist() == [0.75, 0.25]
