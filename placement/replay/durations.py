"""Mean and percentiles of any number of durations in constant memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# A bin is as wide as 2^-10 of its value: the bits that a float64 keeps below the 10th of its mantissa.
_DROPPED_BITS = 42


@dataclass(frozen=True, slots=True)
class Durations:
    """Seconds. Percentiles are nearest ranks, within 0.05%; mean, min and max are exact."""

    mean: float
    p50: float
    p95: float
    p99: float
    min: float
    max: float


class DurationHistogram:
    """Counts durations by size."""

    def __init__(self) -> None:
        self._weight_of_bin: dict[int, float] = {}
        self._total = 0.0
        self._weight = 0.0
        self._min, self._max = np.inf, 0.0

    def add(self, seconds: NDArray[np.float64], weights: NDArray[np.float64] | None = None) -> None:
        """Count `seconds` (at least 0), each as often as its weight says."""
        if not len(seconds):
            return
        # Positive floats sort like their bits, so the leading bits are a logarithmic bin number.
        bins, place = np.unique(
            np.ascontiguousarray(seconds).view(np.int64) >> _DROPPED_BITS, return_inverse=True
        )
        amounts = np.bincount(place, weights, minlength=len(bins))
        for number, amount in zip(bins.tolist(), amounts.tolist(), strict=True):
            self._weight_of_bin[number] = self._weight_of_bin.get(number, 0.0) + amount
        self._total += float(seconds.sum() if weights is None else seconds @ weights)
        self._weight += float(len(seconds) if weights is None else weights.sum())
        self._min = min(self._min, float(seconds.min()))
        self._max = max(self._max, float(seconds.max()))

    def summary(self) -> Durations | None:
        """None when nothing was counted."""
        if not self._weight:
            return None
        bins = np.array(sorted(self._weight_of_bin))
        reached = np.cumsum([self._weight_of_bin[number] for number in bins.tolist()])
        middles = ((bins << _DROPPED_BITS) | (1 << (_DROPPED_BITS - 1))).view(np.float64)

        def percentile(share: float) -> float:
            place = int(np.searchsorted(reached, share * reached[-1] * (1 - 1e-12)))
            return float(np.clip(middles[place], self._min, self._max))

        return Durations(
            mean=self._total / self._weight,
            p50=percentile(0.50),
            p95=percentile(0.95),
            p99=percentile(0.99),
            min=self._min,
            max=self._max,
        )
