"""The experts' sum: against references, and in parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.kernels import dense_ffn
from transport.expert_rows import ExpertRows
from workers import fixed_point, kernels
from workers.kernels import ExpertMatrices, ExpertWeights

SameBits = Callable[[Callable[[], tuple[Tensor | NDArray[Any], ...]]], None]
Exponents = NDArray[np.int32]


@dataclass(frozen=True)
class Layer:
    """All experts of a layer, and calls that compute some of them."""

    gate: Tensor
    up: Tensor
    down: Tensor
    limit: float = 7.0

    @classmethod
    def random(
        cls, E: int, H: int, inner: int, dtype: torch.dtype = torch.float32, limit: float = 7.0
    ) -> Layer:
        generator = torch.Generator().manual_seed(E * H + inner)

        def matrix(*shape: int) -> Tensor:
            scale = float(shape[-1]) ** -0.5
            return torch.randn(*shape, generator=generator).mul_(scale).to(dtype)

        return cls(matrix(E, inner, H), matrix(E, inner, H), matrix(E, H, inner), limit)

    def partial_sum(
        self, x: Tensor, ids: Tensor, weights: Tensor, exponents: Exponents, held: list[int], top_k: int
    ) -> tuple[Exponents, NDArray[np.bool_]]:
        """What a worker that holds `held` answers; the other ids are not its own."""
        slots = torch.full((self.gate.shape[0],), -1, dtype=torch.int32)
        slots[held] = torch.arange(len(held), dtype=torch.int32)
        mine = torch.where(torch.isin(ids, torch.tensor(held, dtype=torch.int32)), ids, -1)
        kinds = (ExpertMatrices.of(kind[held]) for kind in (self.gate, self.up, self.down))
        experts = ExpertWeights(slots, *kinds, self.limit, top_k)
        return kernels.moe_partial_sum(
            experts, ExpertRows(x.numpy(), mine.numpy(), weights.numpy(), exponents)
        )

    def exact(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        out = torch.zeros(x.shape, dtype=torch.float64)
        for row, (row_ids, row_weights) in enumerate(zip(ids.tolist(), weights.tolist(), strict=True)):
            for expert, weight in zip(row_ids, row_weights, strict=True):
                gate = self.gate[expert].double() @ x[row].double()
                up = self.up[expert].double() @ x[row].double()
                activation = torch.nn.functional.silu(gate)
                if self.limit:
                    activation, up = activation.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
                out[row] += weight * (self.down[expert].double() @ (activation * up))
        return out


def random_routing(T: int, E: int, top_k: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(E, generator=generator)[:top_k] for _ in range(T)]).int()
    return ids, torch.rand(T, top_k, generator=generator) + 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("limit", [0.0, 0.5])
def test_the_sum_is_close_to_float64(dtype: torch.dtype, limit: float) -> None:
    layer = Layer.random(12, 40, 24, dtype, limit)
    x = torch.randn(30, 40)
    ids, weights = random_routing(30, 12, 4)
    exponents = fixed_point.scale_exponents(x)
    values, saturated = layer.partial_sum(x, ids, weights, exponents, list(range(12)), 4)
    assert not saturated.any()
    found = fixed_point.to_float32(values, exponents).double()
    assert torch.allclose(found, layer.exact(x, ids, weights), rtol=0, atol=5e-6)


@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 2**31))
def test_any_split_of_the_experts_gives_the_same_integers(T: int, workers: int, seed: int) -> None:
    layer = Layer.random(16, 33, 18)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(T, 33, generator=generator)
    ids, weights = random_routing(T, 16, 4, seed)
    exponents = fixed_point.scale_exponents(x)
    whole, _ = layer.partial_sum(x, ids, weights, exponents, list(range(16)), 4)
    owner = torch.randint(0, workers, (16,), generator=generator)
    total = np.zeros_like(whole)
    for worker in torch.randperm(workers, generator=generator).tolist():
        held = (owner == worker).nonzero().squeeze(1)
        held = held[torch.randperm(len(held), generator=generator)].tolist()
        if held:
            total += layer.partial_sum(x, ids, weights, exponents, held, 4)[0]
    assert np.array_equal(total, whole)


def test_a_row_does_not_depend_on_the_others() -> None:
    layer = Layer.random(6, 40, 70)
    x = torch.randn(80, 40)
    ids, weights = random_routing(80, 6, 3)
    exponents = fixed_point.scale_exponents(x)
    everything = list(range(6))
    together, _ = layer.partial_sum(x, ids, weights, exponents, everything, 3)
    for t in range(80):
        row = slice(t, t + 1)
        alone, _ = layer.partial_sum(x[row], ids[row], weights[row], exponents[row], everything, 3)
        assert np.array_equal(alone[0], together[t])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_sum_has_the_same_bits_everywhere(dtype: torch.dtype, same_bits_everywhere: SameBits) -> None:
    layer = Layer.random(9, 100, 130, dtype)
    x = torch.randn(40, 100)
    ids, weights = random_routing(40, 9, 4)
    exponents = fixed_point.scale_exponents(x)
    same_bits_everywhere(lambda: layer.partial_sum(x, ids, weights, exponents, list(range(9)), 4))


def test_rows_off_a_cache_line_give_the_same_bits() -> None:
    """As they lie in a message."""
    layer = Layer.random(9, 96, 130)
    x = torch.randn(40, 96)
    received = torch.empty(x.numel() + 4)[4:].view_as(x).copy_(x)
    assert (x.data_ptr() - received.data_ptr()) % 64
    ids, weights = random_routing(40, 9, 4)
    exponents = fixed_point.scale_exponents(x)
    found, wanted = (
        layer.partial_sum(rows, ids, weights, exponents, list(range(9)), 4)[0] for rows in (received, x)
    )
    assert np.array_equal(found, wanted)
    dense = (layer.gate[0], layer.up[0], layer.down[0], layer.limit)
    assert torch.equal(dense_ffn(received, *dense), dense_ffn(x, *dense))


def test_an_expert_given_twice_counts_twice() -> None:
    layer = Layer.random(3, 20, 10)
    x, exponents = torch.randn(1, 20), np.array([-23], np.int32)
    once, _ = layer.partial_sum(x, torch.tensor([[1]]).int(), torch.ones(1, 1), exponents, [0, 1, 2], 2)
    twice, _ = layer.partial_sum(x, torch.tensor([[1, 1]]).int(), torch.ones(1, 2), exponents, [0, 1, 2], 2)
    assert np.array_equal(twice, 2 * once)


def test_a_row_that_asks_nothing_gets_zeros() -> None:
    layer = Layer.random(3, 20, 10)
    ids = torch.tensor([[-1, -1], [0, -1]], dtype=torch.int32)
    exponents = np.full(2, -23, np.int32)
    values, saturated = layer.partial_sum(torch.randn(2, 20), ids, torch.ones(2, 2), exponents, [0], 2)
    assert not values[0].any()
    assert values[1].any()
    assert not saturated.any()


def test_ids_and_exponents_out_of_range_are_refused() -> None:
    layer = Layer.random(3, 20, 10)
    kinds = (ExpertMatrices.of(kind[:2]) for kind in (layer.gate, layer.up, layer.down))
    experts = ExpertWeights(torch.tensor([0, -1, 1], dtype=torch.int32), *kinds, limit=0.0, top_k=1)
    x, weights, exponents = torch.randn(1, 20), torch.ones(1, 1), np.zeros(1, np.int32)

    def call(expert: int, exponents: Exponents = exponents) -> None:
        rows = ExpertRows(x.numpy(), np.array([[expert]], np.int32), weights.numpy(), exponents)
        kernels.moe_partial_sum(experts, rows)

    call(2)
    with pytest.raises(kernels.ExpertNotHeld, match="expert 1 "):
        call(1)
    for expert in (3, -2, 2**31 - 1, -(2**31)):
        with pytest.raises(ValueError, match="outside -1 to 2"):
            call(expert)
    for exponent in (513, -513, 2**31 - 1, -(2**31)):
        with pytest.raises(ValueError, match="exponent"):
            call(0, np.array([exponent], np.int32))


def test_more_experts_than_top_k_could_overflow_and_are_refused() -> None:
    layer = Layer.random(3, 20, 10)
    ids, weights = random_routing(1, 3, 3)
    with pytest.raises(ValueError, match="shapes"):
        layer.partial_sum(torch.randn(1, 20), ids, weights, np.zeros(1, np.int32), [0, 1, 2], 2)
