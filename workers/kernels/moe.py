"""The experts' sum on a fixed-point grid, and the grid."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transport.expert_rows import ExpertRows, Hidden
from transport.rounded_hidden import RoundedHidden, RoundedPart
from workers.kernels import native
from workers.kernels.expert_matrices import ExpertWeights
from workers.kernels.native import (
    BAD_EXPERT_ID,
    BAD_ROUNDED_ROWS,
    ExpertRowsArgs,
    address,
    check,
    mismatch,
    num_threads,
    raise_if_failed,
)
from workers.partial_sum import ExpertNotHeld

_FLOAT32, _INT32, _BOOL = np.dtype(np.float32), np.dtype(np.int32), np.dtype(np.bool_)
_INT8 = np.dtype(np.int8)


def row_exponents(x: Tensor, *, offset: int = 0, low: int = -126, high: int = 128) -> NDArray[np.int32]:
    """floor(log2(rms)) of every row of x [T, H] float32, plus offset, kept within low to high.

    A row of zeros or of subnormal size counts as -126 or less, a row with a value that is not finite
    as 128.

    Returns:
        int32 [T].
    """
    T, H = x.shape
    out = np.empty(T, _INT32)
    native.row_exponents(check(x).data_ptr(), address(out, _INT32), T, H, offset, low, high, num_threads())
    return out


def grid_to_float32(values: NDArray[np.int32], scale_exponents: NDArray[np.int32]) -> Tensor:
    """values * 2^exponent of each row, rounded once.

    Args:
        values: int32 [T, H].
        scale_exponents: int32 [T], within -512 to 512.

    Returns:
        [T, H] float32.
    """
    T, H = values.shape
    if scale_exponents.shape != (T,):
        raise mismatch("grid_to_float32", values=values, scale_exponents=scale_exponents)
    out = torch.empty(T, H)
    status = native.grid_to_float32(
        address(values, _INT32),
        address(scale_exponents, _INT32),
        out.data_ptr(),
        T,
        H,
        num_threads(),
    )
    raise_if_failed(status)
    return out


def moe_partial_sum(experts: ExpertWeights, rows: ExpertRows) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Sum of each row's weighted expert outputs on the row's fixed-point grid.

    Every weighted output w * y (one float32 product) becomes rint(w * y * 2^-e) and the integers are
    added, so a row's experts may be split among any number of calls and workers and added in any order.
    Weights are read once for all rows of an expert.

    Args:
        rows: hidden float32, the bits of bfloat16, or rounded in the blocks that gate and up want; at most
            top_k experts a row, scale exponents within -512 to 512.

    Returns:
        int32 [T, H] and bool [T]: rows where an output left the grid or was not finite, whose sums
        mean nothing; ask again with a coarser grid.

    Raises:
        ExpertNotHeld: an id has no slot.
        ValueError: shapes that do not fit, an id or exponent out of range.
    """
    hidden, expert_ids, weights, scale_exponents = rows
    T, H = hidden.shape
    if not isinstance(hidden, RoundedHidden) and hidden.dtype == np.uint16:
        hidden = (hidden.astype(np.uint32) << 16).view(np.float32)
    k = expert_ids.shape[1]
    if (
        experts.gate.columns != H
        or expert_ids.shape != (T, k)
        or weights.shape != (T, k)
        or scale_exponents.shape != (T,)
        or k > experts.top_k
    ):
        raise mismatch(
            "moe_partial_sum",
            hidden=hidden,
            expert_ids=expert_ids,
            weights=weights,
            scale_exponents=scale_exponents,
            slots=experts.slots,
        )
    values, saturated = np.empty((T, H), _INT32), np.empty(T, _BOOL)
    status = native.moe_partial_sum(
        ExpertRowsArgs(
            *_hidden_arguments(hidden),
            address(expert_ids, _INT32),
            address(weights, _FLOAT32),
            address(scale_exponents, _INT32),
            T,
            H,
            k,
        ),
        experts.arguments,
        address(values, _INT32),
        address(saturated, _BOOL),
        num_threads(),
    )
    if status > 0:
        raise ExpertNotHeld(
            f"expert {status - 1} is not held here: the sender's plan differs from this store's"
        )
    if status == BAD_ROUNDED_ROWS:
        raise ValueError("moe_partial_sum: rows rounded otherwise than gate and up want, or below -127")
    if status == BAD_EXPERT_ID:
        raise ValueError(f"moe_partial_sum: an expert id is outside -1 to {experts.slots.numel() - 1}")
    raise_if_failed(status)
    return values, saturated


def round_rows(x: NDArray[np.float32], blocks: tuple[int, ...]) -> RoundedHidden:
    """Rows [T, K] float32 rounded to 8 bits in blocks of these widths (docs/arithmetic.md).

    Raises:
        ValueError: a width that K is no multiple of.
    """
    T, K = x.shape
    parts = []
    for block in blocks:
        if K % block:
            raise ValueError(f"round_rows: rows of {K} values in blocks of {block}")
        q, scales = np.empty((T, K), np.int8), np.empty((T, K // block), _FLOAT32)
        status = native.round_rows(
            address(x, _FLOAT32), T, K, block, address(q, _INT8), address(scales, _FLOAT32), num_threads()
        )
        raise_if_failed(status)
        parts.append(RoundedPart(block, q, scales))
    return RoundedHidden(tuple(parts))


def _hidden_arguments(hidden: Hidden) -> tuple[int | None, ...]:
    """hidden, q_256, q_32, scales_256, scales_32 of `ExpertRowsArgs`."""
    if not isinstance(hidden, RoundedHidden):
        return address(hidden, _FLOAT32), None, None, None, None
    parts = {part.block: part for part in hidden.parts}
    wide, narrow = parts.get(256), parts.get(32)
    return (
        None,
        None if wide is None else address(wide.q, _INT8),
        None if narrow is None else address(narrow.q, _INT8),
        None if wide is None else address(wide.scales, _FLOAT32),
        None if narrow is None else address(narrow.scales, _FLOAT32),
    )
