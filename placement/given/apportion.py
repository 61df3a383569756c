"""Real-valued loads as whole counts that add up."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def apportion(weights: NDArray[np.floating], total: int) -> NDArray[np.uint64]:
    """Whole numbers in proportion to `weights`, each row adding up to `total`.

    Hamilton's method of largest remainders, ties to the lower index: no number is off by one or more.

    Args:
        weights: float [rows, columns], not negative, every row with a positive sum.
        total: what each row adds up to, below 2^53.

    Returns:
        uint64 [rows, columns].
    """
    exact = weights / weights.sum(axis=1, keepdims=True) * total
    counts = np.floor(exact).astype(np.int64)
    missing = total - counts.sum(axis=1)
    order = np.argsort(counts - exact, axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(weights.shape[1])[None, :], axis=1)
    counts += rank < missing[:, None]
    whole: NDArray[np.uint64] = counts.astype(np.uint64)
    return whole
