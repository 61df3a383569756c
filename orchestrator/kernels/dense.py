"""Linear layers, norms, activations: what every row goes through."""

from __future__ import annotations

import torch
from torch import Tensor, empty

from workers.kernels import native
from workers.kernels.native import check, is_bf16, mismatch, num_threads, raise_if_failed


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x times weight transposed.

    Args:
        x: [T, K] float32.
        weight: [N, K] float32 or bfloat16, as stored in checkpoints.

    Returns:
        [T, N] float32.
    """
    T, K = x.shape
    N, weight_K = weight.shape
    if weight_K != K:
        raise mismatch("linear", x=x, weight=weight)
    out = empty(T, N)
    native.linear(
        check(x).data_ptr(), weight.data_ptr(), is_bf16(weight), out.data_ptr(), T, N, K, num_threads()
    )
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float, zero_centered: bool) -> Tensor:
    """x / sqrt(mean(x^2) + eps) times the weight, or times 1 + weight when zero-centered.

    Args:
        x: [T, D] float32.
        weight: [D] float32 or bfloat16.

    Returns:
        [T, D] float32.
    """
    T, D = x.shape
    if weight.numel() != D:
        raise mismatch("rms_norm", x=x, weight=weight)
    out = empty(T, D)
    native.rms_norm(
        check(x).data_ptr(),
        weight.data_ptr(),
        is_bf16(weight),
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


def dense_ffn(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, limit: float) -> Tensor:
    """down(swiglu(gate(x), up(x))): the dense layers, the shared expert, the MTP layers.

    Args:
        x: [T, H] float32.
        gate, up: [I, H], down: [H, I]; all float32 or all bfloat16.
        limit: the SwiGLU clamp, 0 for none.

    Returns:
        [T, H] float32.
    """
    T, H = x.shape
    intermediate = gate.shape[0]
    if gate.shape != (intermediate, H) or up.shape != gate.shape or down.shape != (H, intermediate):
        raise mismatch("dense_ffn", x=x, gate=gate, up=up, down=down)
    out = empty(T, H)
    status = native.dense_ffn(
        check(x).data_ptr(),
        gate.data_ptr(),
        up.data_ptr(),
        down.data_ptr(),
        is_bf16(gate, up, down),
        out.data_ptr(),
        T,
        H,
        intermediate,
        limit,
        num_threads(),
    )
    raise_if_failed(status)
    return out
