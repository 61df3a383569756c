"""The router's choice."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from workers.kernels import native
from workers.kernels.native import address, check, num_threads, raise_if_failed

_FLOAT32, _INT32 = np.dtype(np.float32), np.dtype(np.int32)


def route_top_k(
    logits: Tensor, bias: Tensor | None, top_k: int, normalise: bool, scaling_factor: float
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Choose each token's experts: the top_k largest sigmoid(logits) + bias, ties to the lower id.

    The weights are the sigmoids (without bias), divided by their sum if `normalise`, times
    `scaling_factor`.

    Args:
        logits: [T, E] float32.
        bias: [E] float32 or None.

    Returns:
        expert_ids int32 [T, top_k], best first, and weights float32 [T, top_k].
    """
    T, E = logits.shape
    if not 0 < top_k <= E or (bias is not None and bias.numel() != E):
        raise ValueError(f"route_top_k: logits {list(logits.shape)}, top_k {top_k}, bias of another size")
    expert_ids, weights = np.empty((T, top_k), _INT32), np.empty((T, top_k), _FLOAT32)
    status = native.route_top_k(
        check(logits).data_ptr(),
        None if bias is None else check(bias).data_ptr(),
        address(expert_ids, _INT32),
        address(weights, _FLOAT32),
        T,
        E,
        top_k,
        1 if normalise else 0,
        scaling_factor,
        num_threads(),
    )
    raise_if_failed(status)
    return expert_ids, weights
