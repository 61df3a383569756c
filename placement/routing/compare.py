"""How alike two sets of routing statistics are, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placement.errors import InputError
from placement.given.stats import RoutingStats

# The quarter that a typical plan would keep in fast memory.
HOT_SHARE = 0.25

# Added to every count before the logarithm (Jeffreys), so that an expert never seen has one.
_PSEUDOCOUNT = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class RoutingComparison:
    """Three measures, each float64 [num_moe_layers].

    `total_variation`: 0 for equal use of experts, 1 for no expert in common; the share of choices that
    would have to change. `hot_overlap`: share of the hottest experts of one that are hottest in the other
    too; by chance alone it is the hot share itself. `log_popularity_correlation`: Pearson's r of
    ln(count + 1/2), 0 where one of the two is even.
    """

    hot_share: float
    total_variation: NDArray[np.float64]
    hot_overlap: NDArray[np.float64]
    log_popularity_correlation: NDArray[np.float64]

    def summary(self) -> str:
        """One line with the means over layers."""
        return (
            f"total variation {self.total_variation.mean():.2f}, "
            f"{self.hot_overlap.mean():.0%} of the hottest {self.hot_share:.0%} shared, "
            f"correlation of ln popularity {self.log_popularity_correlation.mean():.2f}"
        )


def compare(first: RoutingStats, second: RoutingStats, hot_share: float = HOT_SHARE) -> RoutingComparison:
    """Compare two statistics of one model. Finite samples alone put total variation above 0.

    Raises:
        RoutingFileError: statistics of different models.
        InputError: a hot share that is not between 0 and 1.
    """
    second.check_fingerprint(first.fingerprint, first.model, "comparison")
    if not 0 < hot_share <= 1:
        raise InputError(f"hot share: expected above 0 and at most 1, found {hot_share}")
    counts = [stats.counts.astype(np.float64) for stats in (first, second)]
    shares = [c / c.sum(axis=1, keepdims=True) for c in counts]
    num_hot = max(1, round(hot_share * first.num_experts))
    hot = [_hottest(c, num_hot) for c in counts]
    return RoutingComparison(
        hot_share=hot_share,
        total_variation=np.abs(shares[0] - shares[1]).sum(axis=1) / 2,
        hot_overlap=(hot[0] & hot[1]).sum(axis=1) / num_hot,
        log_popularity_correlation=_row_correlation(*(np.log(c + _PSEUDOCOUNT) for c in counts)),
    )


def _hottest(counts: NDArray[np.float64], num_hot: int) -> NDArray[np.bool_]:
    order = np.argsort(-counts, axis=1, kind="stable")[:, :num_hot]
    hot = np.zeros(counts.shape, dtype=np.bool_)
    np.put_along_axis(hot, order, True, axis=1)
    return hot


def _row_correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    # Not the norm: rounding leaves the deviations of an even row slightly off zero.
    varied = (np.ptp(a, axis=1) > 0) & (np.ptp(b, axis=1) > 0)
    a = a - a.mean(axis=1, keepdims=True)
    b = b - b.mean(axis=1, keepdims=True)
    norm = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    correlation: NDArray[np.float64] = np.divide(
        (a * b).sum(axis=1), norm, out=np.zeros(len(a)), where=varied
    )
    return correlation
