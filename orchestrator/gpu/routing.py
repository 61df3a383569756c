"""The router's choice."""

from __future__ import annotations

import ctypes

from placement.errors import InputError
from workers.gpu.device import Stream

MOST_EXPERTS, MOST_CHOSEN = 1024, 16
"""As routing.h of the kernels has them."""


class _RouteArgs(ctypes.Structure):
    _fields_ = (
        ("logits", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("expert_ids", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("num_experts", ctypes.c_int64),
        ("top_k", ctypes.c_int64),
        ("scaling_factor", ctypes.c_float),
        ("normalise", ctypes.c_int32),
    )


def route_top_k(
    stream: Stream,
    num_rows: int,
    num_experts: int,
    top_k: int,
    *,
    logits: int,
    bias: int,
    normalise: bool,
    scaling_factor: float,
    expert_ids: int,
    weights: int,
) -> None:
    """Choose each row's experts, as `orchestrator.kernels.route_top_k`.

    Args:
        logits: float32 [rows, num_experts].
        bias: float32 [num_experts], or 0.
        expert_ids: int32 [rows, top_k], written, best first.
        weights: float32 [rows, top_k], written.

    Raises:
        InputError: more experts, or more chosen ones, than the kernel takes.
    """
    check_routing(num_experts, top_k)
    arguments = _RouteArgs(logits, bias, expert_ids, weights, num_experts, top_k, scaling_factor, normalise)
    threads = min(8, -(-num_experts // 32)) * 32
    stream.launch("route_top_k", (num_rows, 1, 1), threads, arguments)


def check_routing(num_experts: int, top_k: int) -> None:
    """Raise InputError where a model routes over more experts than the kernel takes."""
    if not 0 < top_k <= min(num_experts, MOST_CHOSEN) or num_experts > MOST_EXPERTS:
        raise InputError(
            f"router: {top_k} of {num_experts} experts; the GPU kernels choose up to {MOST_CHOSEN} of up to "
            f"{MOST_EXPERTS}: use --device cpu"
        )
