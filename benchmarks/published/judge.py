"""How far predictions are from what was published, and the range that follows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.published.measurements import Measurement
from placement.hardware.spread import Range

WANTED_COVER = 0.8
"""Of a range: the next measurement of a device that nobody set anything on is to lie in it so often."""
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Judged:
    """A measurement beside its prediction."""

    measurement: Measurement
    predicted_tokens_per_s: float

    @property
    def error(self) -> float:
        """Of the prediction, by what was published: below 0 where it is too slow."""
        return self.predicted_tokens_per_s / self.measurement.decode_tokens_per_s - 1

    @property
    def ratio(self) -> float:
        """Published by predicted."""
        return self.measurement.decode_tokens_per_s / self.predicted_tokens_per_s


def range_of(
    ratios: Sequence[float], groups: Sequence[Hashable] | None = None, cover: float = WANTED_COVER
) -> Range:
    """From measured by predicted ratios to the factors that cover so many of the next ones.

    Order statistics: of n ratios that come from one distribution, the next lies below the k-th smallest with
    probability k / (n + 1). Each tail is as large as `cover` allows; where even the extremes cover less, they
    are the range.

    Args:
        groups: of each ratio, such as its device. A group counts as one ratio, each of its own as a part of
            it: who measured often does not narrow the range. None: each ratio is a group.

    Raises:
        ValueError: no ratio.
    """
    if not ratios:
        raise ValueError("range_of: expected at least one ratio")
    of = list(range(len(ratios))) if groups is None else list(groups)
    sizes = Counter(of)
    shares = [1 / sizes[group] / (len(sizes) + 1) for group in of]
    parts = sorted(zip(ratios, shares, strict=True))
    most = (1 - cover) / 2
    low, below = _tail(parts, most)
    # Of equal ratios the smallest parts come first at this end, too.
    high, above = _tail(sorted(parts, key=lambda part: (-part[0], part[1])), most)
    return Range(min(low, high), max(low, high), len(ratios), max(0.0, 1 - below - above))


def _tail(parts: Sequence[tuple[float, float]], most: float) -> tuple[float, float]:
    """The last ratio, from the outside, up to which no more than `most` lies, and how much does."""
    ratio, share = parts[0]
    for next_ratio, more in parts[1:]:
        if share + more > most + _ROUNDING:
            break
        ratio, share = next_ratio, share + more
    return ratio, share


def range_about(judged: Sequence[Judged]) -> Range:
    """Of measurements that did not set what predicts them: each device counts as one ratio."""
    return range_of([one.ratio for one in judged], [one.measurement.first_device for one in judged])


def median_error(judged: Sequence[Judged]) -> float:
    """Of their sizes."""
    return median(abs(one.error) for one in judged)


def worst_error(judged: Sequence[Judged]) -> float:
    return max(abs(one.error) for one in judged)


def coverage(judged: Sequence[Judged], within: Range) -> float:
    """The part of the measurements that lie in the range about their prediction."""
    return sum(within.holds(one.ratio) for one in judged) / len(judged)
