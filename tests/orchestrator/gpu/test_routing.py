"""The router's choice on a card."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from orchestrator import kernels
from orchestrator.gpu.routing import route_top_k
from placement.errors import InputError
from tests.orchestrator.gpu.on_card import OnCard, assert_same_bits


def route(on_card: OnCard, seed: int, num_experts: int, top_k: int) -> None:
    random = np.random.default_rng(seed)
    rows = int(random.integers(1, 6))
    logits = (random.standard_normal((rows, num_experts)) * 4).astype(np.float32)
    # Ties, at one value or at many.
    logits[random.random(rows) < 0.3] = 0.5
    logits[random.random(rows) < 0.3] //= 2
    for bad in (np.nan, np.inf, -np.inf):
        logits[random.random(logits.shape) < 0.03] = bad
    bias = random.standard_normal(num_experts).astype(np.float32) if random.integers(2) else None
    normalise, factor = bool(random.integers(2)), float(random.uniform(0.5, 3))
    ids, weights = on_card.room(rows, top_k), on_card.room(rows, top_k)
    route_top_k(
        on_card.stream,
        rows,
        num_experts,
        top_k,
        logits=on_card.put(logits),
        bias=0 if bias is None else on_card.put(bias),
        normalise=normalise,
        scaling_factor=factor,
        expert_ids=ids,
        weights=weights,
    )
    expected = kernels.route_top_k(
        torch.from_numpy(logits), None if bias is None else torch.from_numpy(bias), top_k, normalise, factor
    )
    assert_same_bits(on_card.get(ids, (rows, top_k), np.int32), expected[0])
    assert_same_bits(on_card.get(weights, (rows, top_k)), expected[1])


@pytest.mark.parametrize(
    ("num_experts", "top_k"), [(1, 1), (7, 7), (8, 2), (31, 5), (64, 6), (288, 8), (512, 10), (1024, 16)]
)
def test_experts_and_weights_are_the_cpu_kernels(on_card: OnCard, num_experts: int, top_k: int) -> None:
    for seed in range(3):
        route(on_card, seed, num_experts, top_k)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(300))
def test_many_experts_and_weights_are_the_cpu_kernels(on_card: OnCard, seed: int) -> None:
    random = np.random.default_rng(seed)
    num_experts = int(random.integers(1, 1025))
    route(on_card, seed, num_experts, int(random.integers(1, min(16, num_experts) + 1)))


@pytest.mark.parametrize(("num_experts", "top_k"), [(1025, 8), (64, 17), (4, 5), (4, 0)])
def test_more_experts_than_the_kernel_takes_are_refused(
    on_card: OnCard, num_experts: int, top_k: int
) -> None:
    with pytest.raises(
        InputError, match=rf"^router: {top_k} of {num_experts} experts; .*: use --device cpu$"
    ):
        route_top_k(
            on_card.stream,
            1,
            num_experts,
            top_k,
            logits=1,
            bias=0,
            normalise=True,
            scaling_factor=1.0,
            expert_ids=1,
            weights=1,
        )
