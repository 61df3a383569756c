"""The grid: its steps, its limits, what it costs beside a float32 sum, and saturation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.kernels import dense_ffn
from tests.workers.torch_oracle import torch_partial_sum
from transport.expert_rows import ExpertRows
from workers import fixed_point, kernels
from workers.fixed_point import PartialSum
from workers.kernels import ExpertMatrices, ExpertWeights


def experts(E: int, H: int, inner: int, top_k: int, scale: float = 1.0) -> ExpertWeights:
    generator = torch.Generator().manual_seed(E + H)

    def matrix(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).mul_(float(shape[-1]) ** -0.5)

    slots = torch.arange(E, dtype=torch.int32)
    kinds = (matrix(E, inner, H), matrix(E, inner, H), matrix(E, H, inner) * scale)
    return ExpertWeights(slots, *map(ExpertMatrices.of, kinds), limit=0.0, top_k=top_k)


def alone(layer: ExpertWeights, expert: int, x: Tensor) -> Tensor:
    """One expert's output [T, H], unweighted."""
    gate, up, down = (kind.data[expert] for kind in (layer.gate, layer.up, layer.down))
    return dense_ffn(x, gate, up, down, 0.0)


def routing(T: int, E: int, top_k: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(T)
    ids = torch.stack([torch.randperm(E, generator=generator)[:top_k] for _ in range(T)]).int()
    weights = torch.rand(T, top_k, generator=generator) + 0.1
    return ids, weights / weights.sum(1, keepdim=True) * 3.0


def partial_sum(layer: ExpertWeights, rows: ExpertRows) -> PartialSum:
    return PartialSum(*kernels.moe_partial_sum(layer, rows))


def asked(x: Tensor, ids: Tensor, weights: Tensor, exponents: NDArray[np.int32]) -> ExpertRows:
    return ExpertRows(x.numpy(), ids.numpy(), weights.numpy(), exponents)


@given(st.integers(-140, 120), st.integers(1, 50), st.integers(0, 2**31))
def test_the_grid_follows_the_residuals_rms(magnitude: int, size: int, seed: int) -> None:
    x = torch.randn(3, size, generator=torch.Generator().manual_seed(seed)).double() * 2.0**magnitude
    x = x.float()
    rms = np.sqrt(np.mean(x.double().numpy() ** 2, axis=1))
    found = fixed_point.scale_exponents(x)
    assert found.dtype == np.int32
    for exponent, value in zip(found.tolist(), rms, strict=True):
        # Outside, sums of squares leave float32: the grid is then finer or coarser, not wrong.
        if not 2.0**-60 < value < 2.0**63 / size**0.5:
            continue
        assert abs(exponent - max(np.floor(np.log2(value)) - 23, -120)) <= (
            1 if np.log2(value) % 1 < 1e-5 else 0
        )


def test_a_residual_of_zeros_or_infinities_still_has_a_grid() -> None:
    x = torch.tensor([[0.0, 0.0], [torch.inf, 1.0], [torch.nan, 1.0], [1.0, 1.0]])
    assert fixed_point.scale_exponents(x).tolist() == [-120, 100, 100, -23]


@given(st.integers(-(2**31), 2**31 - 1), st.integers(-149, 90))
def test_back_to_float32_rounds_once(value: int, exponent: int) -> None:
    found = fixed_point.to_float32(np.array([[value]], np.int32), np.array([exponent], np.int32))
    assert found.item() == np.float32(float(value) * 2.0**exponent)


def test_the_grid_costs_about_three_roundings_to_the_residual() -> None:
    """Beside a float32 sum, after the residual is added, which rounds both to its own precision."""
    T, H, top_k = 64, 256, 8
    layer = experts(32, H, 64, top_k)
    x = torch.randn(T, H, generator=torch.Generator().manual_seed(1))
    residual = torch.randn(T, H, generator=torch.Generator().manual_seed(2)) * 4
    ids, weights = routing(T, 32, top_k)
    exponents = fixed_point.scale_exponents(residual)

    outputs = torch.stack(
        [torch.stack([alone(layer, e, x[t : t + 1])[0] for e in row]) for t, row in enumerate(ids.tolist())]
    )
    products = outputs * weights.unsqueeze(2)
    exact = products.double().sum(1)
    float_sum = products[:, 0].clone()
    for column in range(1, top_k):
        float_sum += products[:, column]
    part = partial_sum(layer, asked(x, ids, weights, exponents))
    assert not part.saturated.any()
    grid_sum = fixed_point.to_float32(part.values, exponents)
    step = torch.ldexp(torch.ones(T), torch.from_numpy(exponents)).double().unsqueeze(1)
    assert ((grid_sum.double() - exact).abs() <= step * (top_k / 2) + exact.abs() * 2.0**-24).all()

    def rms_error(total: Tensor) -> float:
        return float(((total + residual).double() - (exact + residual.double())).square().mean().sqrt())

    assert rms_error(grid_sum) < 3 * rms_error(float_sum)


def test_a_saturated_row_fits_a_coarser_grid() -> None:
    T, H, top_k = 4, 64, 4
    layer = experts(8, H, 32, top_k, scale=1e4)
    x = torch.randn(T, H, generator=torch.Generator().manual_seed(1))
    ids, weights = routing(T, 8, top_k)
    exponents = fixed_point.scale_exponents(x)
    exponents[2] = 0
    part = partial_sum(layer, asked(x, ids, weights, exponents))
    assert part.saturated.tolist() == [True, True, False, True]

    exact = torch.zeros(T, H, dtype=torch.float64)
    for t, row in enumerate(ids.tolist()):
        for column, e in enumerate(row):
            y = alone(layer, e, x[t : t + 1])[0]
            exact[t] += (y * weights[t, column]).double()
    coarser = exponents
    for _ in range(fixed_point.MAX_COARSENINGS):
        if not part.saturated.any():
            break
        coarser = coarser + part.saturated.astype(np.int32) * fixed_point.COARSEN_STEP
        part = partial_sum(layer, asked(x, ids, weights, coarser))
    assert not part.saturated.any()
    found = fixed_point.to_float32(part.values, coarser).double()
    step = torch.ldexp(torch.ones(T), torch.from_numpy(coarser)).double().unsqueeze(1)
    assert ((found - exact).abs() <= step * (top_k / 2) + exact.abs() * 2.0**-23).all()


@pytest.mark.parametrize("top_k", [1, 3, 8])
def test_the_largest_value_on_the_grid_is_kept_and_the_next_is_flagged(top_k: int) -> None:
    """One expert whose output is exactly its weight, so that the grid's edge can be met."""
    one = torch.ones(1, 1, 1)
    unit = ExpertMatrices.of(one)
    slots = torch.zeros(1, dtype=torch.int32)
    layer = ExpertWeights(slots, unit, unit, unit, limit=0.0, top_k=top_k)
    x = torch.tensor([[4.0]])
    y = dense_ffn(x, one[0], one[0], one[0], 0.0)
    limit = fixed_point.limit(top_k)
    inside = float(np.nextafter(np.float32(limit), np.float32(0)))
    for target, flagged in (
        (inside, False),
        (limit * 1.001, True),
        (-limit * 1.001, True),
        (float("inf"), True),
    ):
        weight = torch.tensor([[target]]) / y
        part = partial_sum(layer, asked(x, torch.zeros(1, 1).int(), weight, np.zeros(1, np.int32)))
        assert part.saturated.tolist() == [flagged]


def test_numbers_that_are_not_finite_stay_flagged_on_every_grid() -> None:
    layer = experts(4, 16, 8, 2)
    layer.down.data[1, 3, 2] = torch.nan
    x = torch.ones(2, 16)
    ids, weights = torch.tensor([[1, 0], [2, 3]], dtype=torch.int32), torch.ones(2, 2)
    last = 100 + fixed_point.MAX_COARSENINGS * fixed_point.COARSEN_STEP
    for exponent in (-23, 0, 100, last):
        part = partial_sum(layer, asked(x, ids, weights, np.full(2, exponent, np.int32)))
        assert part.saturated.tolist() == [True, False]


def test_the_kernels_agree_with_plain_torch() -> None:
    layer = experts(8, 48, 20, 3)
    x = torch.randn(6, 48, generator=torch.Generator().manual_seed(3))
    ids, weights = routing(6, 8, 3)
    ids[1, 0] = ids[2, 2] = -1
    exponents = fixed_point.scale_exponents(x)
    exponents[4] = -60
    native = partial_sum(layer, asked(x, ids, weights, exponents))
    plain = torch_partial_sum(layer, asked(x, ids, weights, exponents))
    assert plain.saturated.tolist() == native.saturated.tolist() == [False] * 4 + [True, False]
    fits = ~native.saturated
    difference = fixed_point.to_float32(native.values - plain.values, exponents)[fits]
    assert difference.abs().max() < 3e-6
    one = torch_partial_sum(layer, asked(x[3:4], ids[3:4], weights[3:4], exponents[3:4]))
    assert np.array_equal(one.values[0], plain.values[3])
    ids[0, 0] = 8
    with pytest.raises(kernels.ExpertNotHeld, match="expert 8"):
        torch_partial_sum(layer, asked(x, ids, weights, exponents))
