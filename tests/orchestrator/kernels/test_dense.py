"""Linear layers, norms and activations against float64, and the order of their sums."""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from orchestrator import kernels
from workers.kernels import row_exponents

EPS = 2.0**-24
SameBits = Callable[[Callable[[], tuple[Any, ...]]], None]


def random_tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def documented_dot(w: np.ndarray, x: np.ndarray) -> np.float32:
    """Sixteen lanes of fused multiply-adds, then the tree, one operation at a time."""
    name = ctypes.util.find_library("m")
    fma = ctypes.CDLL(name).fmaf
    fma.argtypes, fma.restype = [ctypes.c_float] * 3, ctypes.c_float
    padding = -len(w) % 16
    w, x = np.pad(w, (0, padding)), np.pad(x, (0, padding))
    lanes = np.zeros(16, np.float32)
    for k in range(len(w)):
        lanes[k % 16] = fma(float(w[k]), float(x[k]), float(lanes[k % 16]))
    for width in (8, 4, 2, 1):
        lanes = lanes[:width] + lanes[width : 2 * width]
    return np.float32(lanes[0])


@pytest.mark.parametrize("length", [1, 15, 16, 17, 64, 100])
def test_dot_products_follow_the_documented_order(length: int) -> None:
    w, x = random_tensor(5, length, seed=1), random_tensor(7, length, seed=2)
    expected = [[documented_dot(row_w, row_x) for row_w in w.numpy()] for row_x in x.numpy()]
    assert torch.equal(kernels.linear(x, w), torch.tensor(np.array(expected)))


@given(st.integers(1, 60), st.integers(1, 23), st.integers(1, 2100), st.booleans(), st.integers(0, 2**31))
def test_linear_is_close_to_float64(T: int, N: int, K: int, bf16: bool, seed: int) -> None:
    x, w = random_tensor(T, K, seed=seed), random_tensor(N, K, seed=seed + 1)
    if bf16:
        w = w.bfloat16()
    exact = x.double() @ w.double().T
    bound = (K / 16 + 5) * EPS * (x.double().abs() @ w.double().abs().T) + 1e-30
    assert ((kernels.linear(x, w).double() - exact).abs() <= bound).all()


@given(st.integers(2, 70), st.integers(1, 9), st.integers(1, 1100), st.integers(0, 2**31))
def test_a_row_of_linear_does_not_depend_on_the_others(T: int, N: int, K: int, seed: int) -> None:
    x, w = random_tensor(T, K, seed=seed), random_tensor(N, K, seed=seed + 1)
    together = kernels.linear(x, w)
    alone = torch.cat([kernels.linear(x[t : t + 1], w) for t in range(T)])
    assert torch.equal(together, alone)
    cut = T // 2
    assert torch.equal(together[cut:], kernels.linear(x[cut:].clone(), w))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("T", "N", "K"), [(1, 8209, 300), (7, 333, 1031), (50, 48, 1031)])
def test_linear_has_the_same_bits_everywhere(
    T: int, N: int, K: int, dtype: torch.dtype, same_bits_everywhere: SameBits
) -> None:
    x, w = random_tensor(T, K), random_tensor(N, K, seed=1).to(dtype)
    same_bits_everywhere(lambda: (kernels.linear(x, w),))


def test_linear_refuses_what_the_kernel_would_misread() -> None:
    x, w = random_tensor(3, 8), random_tensor(4, 8)
    with pytest.raises(ValueError, match="contiguous"):
        kernels.linear(random_tensor(8, 3).T, w)
    with pytest.raises(ValueError, match="float64"):
        kernels.linear(x.double(), w)
    with pytest.raises(ValueError, match=r"torch\.int32"):
        kernels.linear(x, w.int())
    with pytest.raises(ValueError, match=r"x \[3, 8\], weight_0 \[4, 7\]"):
        kernels.linear(x, random_tensor(4, 7))


def test_exp_is_within_one_ulp() -> None:
    x = torch.linspace(-87.0, 88.7, 400_001)
    exact = x.double().exp()
    rounded = exact.float()
    ulp = (torch.nextafter(rounded, torch.tensor(torch.inf)) - rounded).double()
    assert float(((kernels.exp(x).double() - exact).abs() / ulp).max()) < 1.0


def test_exp_at_its_limits() -> None:
    x = torch.tensor([torch.inf, 89.0, 0.0, -0.0, -104.0, -torch.inf])
    assert kernels.exp(x).tolist() == [torch.inf, torch.inf, 1.0, 1.0, 0.0, 0.0]
    assert kernels.exp(torch.tensor([torch.nan])).isnan().all()
    subnormal = torch.tensor([-88.0, -95.0, -103.0])
    assert torch.allclose(kernels.exp(subnormal), subnormal.exp(), rtol=0, atol=2.0**-149)


def test_sigmoid_is_close_to_float64_and_saturates() -> None:
    x = torch.linspace(-80.0, 80.0, 100_001)
    exact = torch.sigmoid(x.double())
    assert float(((kernels.sigmoid(x).double() - exact).abs() / exact).max()) < 4 * EPS
    assert kernels.sigmoid(torch.tensor([torch.inf, -torch.inf, -200.0])).tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("limit", [0.0, 1.5, 7.0])
def test_swiglu_clamps_after_silu(limit: float) -> None:
    gate, up = random_tensor(31, 17, seed=3) * 6, random_tensor(31, 17, seed=4) * 6
    activation, exact_up = torch.nn.functional.silu(gate.double()), up.double()
    if limit:
        activation, exact_up = activation.clamp(max=limit), exact_up.clamp(-limit, limit)
    found = kernels.swiglu(gate, up, limit)
    assert torch.allclose(found.double(), activation * exact_up, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("zero_centered", [False, True])
@pytest.mark.parametrize("size", [1, 16, 100, 4096])
def test_rms_norm_is_close_to_float64(size: int, zero_centered: bool) -> None:
    x, weight = random_tensor(5, size) * 3, random_tensor(size, seed=1) * 0.1
    exact = x.double() / (x.double().square().mean(1, keepdim=True) + 1e-5).sqrt()
    exact *= weight.double() + (1 if zero_centered else 0)
    found = kernels.rms_norm(x, weight, 1e-5, zero_centered)
    assert torch.allclose(found.double(), exact, rtol=1e-6, atol=1e-30)


def test_elementwise_kernels_have_the_same_bits_everywhere(same_bits_everywhere: SameBits) -> None:
    x, y, weight = random_tensor(300, 131) * 4, random_tensor(300, 131, seed=1) * 4, random_tensor(131)
    same_bits_everywhere(
        lambda: (
            kernels.exp(x * 20),
            kernels.sigmoid(x),
            kernels.swiglu(x, y, 7.0),
            kernels.rms_norm(x, weight, 1e-5, True),
            row_exponents(x),
        )
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dense_ffn_is_its_parts_and_the_same_everywhere(
    dtype: torch.dtype, same_bits_everywhere: SameBits
) -> None:
    x = random_tensor(9, 70)
    gate, up = random_tensor(150, 70, seed=1).to(dtype), random_tensor(150, 70, seed=2).to(dtype)
    down = random_tensor(70, 150, seed=3).to(dtype)
    parts = kernels.swiglu(kernels.linear(x, gate), kernels.linear(x, up), 7.0)
    assert torch.equal(kernels.dense_ffn(x, gate, up, down, 7.0), kernels.linear(parts, down))
    wide = random_tensor(100, 70)
    same_bits_everywhere(lambda: (kernels.dense_ffn(wide, gate, up, down, 7.0),))
    assert torch.equal(
        kernels.dense_ffn(wide, gate, up, down, 7.0)[7:8], kernels.dense_ffn(wide[7:8], gate, up, down, 7.0)
    )


def test_empty_calls_give_empty_results() -> None:
    nothing = torch.empty(0, 8)
    assert kernels.linear(nothing, random_tensor(4, 8)).shape == (0, 4)
    assert kernels.rms_norm(nothing, random_tensor(8), 1e-5, True).shape == (0, 8)
    square = random_tensor(8, 8)
    assert kernels.dense_ffn(nothing, square, square, square, 0.0).shape == (0, 8)
