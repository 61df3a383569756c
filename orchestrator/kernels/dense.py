"""Linear layers, norms, activations: what every row goes through."""

from __future__ import annotations

import torch
from torch import Tensor, empty

from workers.kernels import native
from workers.kernels.matrix import Matrices, Matrix
from workers.kernels.native import check, mismatch, num_threads, raise_if_failed


def linear(x: Tensor, weight: Matrices | Tensor) -> Tensor:
    """x times each matrix transposed, side by side.

    Args:
        x: [T, K] float32.
        weight: matrices of width K in any form, or one as a tensor [N, K].

    Returns:
        [T, N] float32, N the rows of all matrices.
    """
    matrices = weight if isinstance(weight, Matrices) else Matrices.of(weight)
    T, K = x.shape
    if matrices.columns != K:
        raise mismatch("linear", x=x, **{f"weight_{i}": m.data for i, m in enumerate(matrices.each)})
    out = empty(T, matrices.rows)
    status = native.linear(
        check(x).data_ptr(), matrices.arguments, len(matrices.each), out.data_ptr(), T, K, num_threads()
    )
    raise_if_failed(status)
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float, zero_centered: bool) -> Tensor:
    """x / sqrt(mean(x^2) + eps) times the weight, or times 1 + weight when zero-centered.

    Args:
        x: [T, D] float32.
        weight: [D] float32.

    Returns:
        [T, D] float32.
    """
    T, D = x.shape
    if weight.numel() != D:
        raise mismatch("rms_norm", x=x, weight=weight)
    out = empty(T, D)
    native.rms_norm(
        check(x).data_ptr(),
        check(weight).data_ptr(),
        out.data_ptr(),
        T,
        D,
        eps,
        1 if zero_centered else 0,
        num_threads(),
    )
    return out


def exp(x: Tensor) -> Tensor:
    """e^x of float32 values, within 1 ulp or so; the exponential that every other kernel uses."""
    out = torch.empty_like(x)
    native.exp(check(x).data_ptr(), out.data_ptr(), x.numel())
    return out


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x), any shape, float32."""
    out = torch.empty_like(x)
    native.sigmoid(check(x).data_ptr(), out.data_ptr(), x.numel(), num_threads())
    return out


def swiglu(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    """Clamped SwiGLU: min(silu(gate), limit) times up clamped to +-limit; limit 0 means no clamp.

    Args:
        gate, up: [T, I] float32.

    Returns:
        [T, I] float32.
    """
    if gate.shape != up.shape:
        raise mismatch("swiglu", gate=gate, up=up)
    out = torch.empty_like(gate)
    native.swiglu(
        check(gate).data_ptr(), check(up).data_ptr(), out.data_ptr(), gate.numel(), limit, num_threads()
    )
    return out


def dense_ffn(
    x: Tensor, gate: Matrix | Tensor, up: Matrix | Tensor, down: Matrix | Tensor, limit: float
) -> Tensor:
    """down(swiglu(gate(x), up(x))): the dense layers, the shared expert, the MTP layers.

    Args:
        x: [T, H] float32.
        gate, up: [I, H], down: [H, I], each in any form, or a tensor.
        limit: the SwiGLU clamp, 0 for none.

    Returns:
        [T, H] float32.
    """
    gate, up, down = (each if isinstance(each, Matrix) else Matrix.of(each) for each in (gate, up, down))
    T, H = x.shape
    inner = gate.rows
    if (gate.columns, up.rows, up.columns, down.rows, down.columns) != (H, inner, H, H, inner):
        raise mismatch("dense_ffn", x=x, gate=gate.data, up=up.data, down=down.data)
    out = empty(T, H)
    status = native.dense_ffn(
        check(x).data_ptr(),
        gate.arguments,
        up.arguments,
        down.arguments,
        out.data_ptr(),
        T,
        limit,
        num_threads(),
    )
    raise_if_failed(status)
    return out
