"""The router's choice against a stable sort."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import kernels

SameBits = Callable[[Callable[[], tuple[Any, ...]]], None]


@given(st.integers(1, 12), st.integers(1, 40), st.booleans(), st.booleans(), st.data())
def test_routing_matches_a_stable_sort(
    T: int, E: int, biased: bool, normalise: bool, data: st.DataObject
) -> None:
    top_k = data.draw(st.integers(1, E))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    # Few distinct values, so that ties are common.
    logits = torch.randint(-3, 4, (T, E), generator=generator).float()
    bias = torch.randint(-1, 2, (E,), generator=generator) * 0.25 if biased else None
    ids, weights = kernels.route_top_k(logits, bias, top_k, normalise, 3.0)

    scores = kernels.sigmoid(logits).numpy()
    keys = scores + bias.numpy() if bias is not None else scores
    expected = np.argsort(-keys, axis=1, kind="stable")[:, :top_k]
    assert (ids == expected).all()
    chosen = np.take_along_axis(scores, expected, 1).astype(np.float64)
    if normalise:
        chosen /= chosen.sum(1, keepdims=True)
    assert np.allclose(weights, chosen * 3.0, rtol=1e-6)


def test_the_bias_changes_the_choice_but_not_the_weights() -> None:
    ids, weights = kernels.route_top_k(
        torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([0.0, 0.0, 5.0]), 2, False, 1.0
    )
    assert ids.tolist() == [[2, 0]]
    assert np.array_equal(weights, kernels.sigmoid(torch.tensor([[-1.0, 1.0]])).numpy())


def test_logits_that_are_not_numbers_still_give_distinct_experts() -> None:
    ids, _ = kernels.route_top_k(torch.tensor([[torch.nan, 0.0, torch.nan, torch.nan]]), None, 3, True, 1.0)
    assert ids.tolist() == [[1, 0, 2]]


def test_routing_has_the_same_bits_everywhere(same_bits_everywhere: SameBits) -> None:
    logits, bias = torch.randn(150, 288), torch.randn(288) * 0.1
    same_bits_everywhere(lambda: kernels.route_top_k(logits, bias, 8, True, 3.0))
