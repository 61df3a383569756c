"""By how much measured times differ from predicted ones, by the size of the work."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, field

_EDGES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 48, 64, 96, 128, 192, 256)
"""Works of as many rows as an edge, or of more than the edge before, are taken for alike."""
_NOISE, _LEAST_NOISE = 0.1**2, 0.04**2
"""Variance of a measurement's logarithm, until measurements say it, and at least."""
_NOISE_MEMORY = 64.0
"""So many measurements say how much they vary."""
_FAR = 2.5
"""Standard deviations that a measurement may differ: what is beyond, others did to the box meanwhile."""
_FAR_AGAIN = 4
"""So many on end beyond that, on the same side, are a change."""
_MOST = math.log(2)
"""So far a measurement may lie from those before it: a pass that was run again says nothing of the others."""
_OWN_DRIFT = 0.003**2
"""Variance that a step adds to one size alone."""
_BETWEEN_SIZES = 0.17**2
"""Variance from one size to another that is e times as large."""


@dataclass(slots=True)
class _Size:
    """Of one size: the logarithm of measured by predicted seconds, at the logarithm of the mean size.

    Attributes:
        variance: of the value, as it was at that step.
        far: so many measurements on end were far above the value, or, below 0, below it.
    """

    place: float
    value: float
    variance: float
    step: int
    count: int = 1
    far: int = 0


@dataclass(slots=True)
class Corrections:
    """Of one kind of work. Sizes that are near to each other are corrected alike, the more so if one was
    measured long ago.

    Logarithms of seconds are values of a Kalman filter for each size, by Kalman (1960), without covariances.
    Over the sizes they are smoothed as a random walk, by Rauch, Tung and Striebel (1965).
    """

    _sizes: dict[int, _Size] = field(default_factory=dict)
    """By edge."""
    _noise: float = _NOISE
    _smooth: list[tuple[float, float]] | None = None
    """(place, value) of each size, ascending; None where that is to be found anew."""
    _step: int = 0

    @property
    def are_known(self) -> bool:
        """Whether anything was measured."""
        return bool(self._sizes)

    def learn(
        self, size: float, found: float, step: int, common_variance: float = 0.0
    ) -> tuple[float, float]:
        """Take a logarithm in.

        What differs from the value that is known is noise, or the size drifted, or all sizes did. The longer
        a size was not measured, the more of it is its own.

        Args:
            common_variance: of what all sizes have in common.

        Returns:
            By how much all sizes have changed, and the share of `common_variance` that is left.
        """
        self._smooth, self._step = None, step
        edge = _EDGES[min(bisect_left(_EDGES, size), len(_EDGES) - 1)]
        known = self._sizes.get(edge)
        if known is None:
            self._sizes[edge] = _Size(math.log(size), found, self._noise, step)
            return 0.0, 1.0
        if known.count >= 3:
            found = min(max(found, known.value - _MOST), known.value + _MOST)
        known.count += 1
        known.place += (math.log(size) - known.place) / min(known.count, 20)
        variance = known.variance + _OWN_DRIFT * (step - known.step)
        total = variance + common_variance + self._noise
        rest, farthest = found - known.value, _FAR * math.sqrt(total)
        if abs(rest) <= farthest:
            known.far = 0
        else:
            known.far = max(known.far, 0) + 1 if rest > 0 else min(known.far, 0) - 1
            if abs(known.far) < _FAR_AGAIN:
                rest = math.copysign(farthest, rest)
            else:
                variance += rest * rest
                total = variance + common_variance + self._noise
        self._noise = max(_LEAST_NOISE, self._noise * (1 + (rest * rest / total - 1) / _NOISE_MEMORY))
        known.value += rest * variance / total
        known.variance = variance * (1 - variance / total)
        known.step = step
        common_share = common_variance / total
        return rest * common_share, 1 - common_share

    def at(self, place: float) -> float:
        """Of a size, given as its logarithm: a straight line between measured ones; 0 without any."""
        if self._smooth is None:
            self._smooth = self._smoothed()
        smooth = self._smooth
        if not smooth:
            return 0.0
        after = bisect_left(smooth, (place,))
        if after in (0, len(smooth)):
            return smooth[min(after, len(smooth) - 1)][1]
        (low, low_value), (high, high_value) = smooth[after - 1 : after + 1]
        return low_value + (high_value - low_value) * (place - low) / (high - low)

    def _smoothed(self) -> list[tuple[float, float]]:
        sizes = [self._sizes[edge] for edge in sorted(self._sizes)]
        ahead = list[tuple[float, float, float]]()
        """Of each size by itself and those below it: value, variance, and what was added to get there."""
        for size in sizes:
            own = size.variance + _OWN_DRIFT * (self._step - size.step)
            if not ahead:
                ahead.append((size.value, own, 0.0))
                continue
            value, variance, _ = ahead[-1]
            added = _BETWEEN_SIZES * (size.place - sizes[len(ahead) - 1].place)
            share = (variance + added) / (variance + added + own)
            ahead.append((value + share * (size.value - value), share * own, added))
        found = [value for value, _, _ in ahead]
        for at in range(len(ahead) - 2, -1, -1):
            value, variance, _ = ahead[at]
            found[at] += variance / (variance + ahead[at + 1][2]) * (found[at + 1] - value)
        return [(size.place, value) for size, value in zip(sizes, found, strict=True)]
