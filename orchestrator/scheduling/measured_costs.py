"""A predicted curve of costs, corrected by what steps really take."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field

from placement.pass_costs import PassCosts

_EDGES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 48, 64, 96, 128, 192, 256)
"""Passes of as many rows as an edge, or of more than the edge before, are taken for alike."""
_NOISE = 0.05**2
"""Variance of a measurement's logarithm."""
_OWN_DRIFT, _COMMON_DRIFT = 0.003**2, 0.0015**2
"""Variance that a step adds: to one size alone, and to all sizes, since a box gets slower as a whole."""
_MOST = math.log(2)
"""So far a measurement may lie from those before it: a pass that was run again says nothing of the others."""
_ROWS_IN_DRAFTING = 2
"""Of a sequence: its newest row, and about one that was accepted or hung on a draft."""


@dataclass(slots=True)
class _Correction:
    """The logarithm of measured by predicted seconds, at the logarithm of the mean size.

    Attributes:
        variance: of the value, as it was at that step.
    """

    place: float = 0.0
    value: float = 0.0
    count: int = 0
    variance: float = math.inf
    step: int = 0


@dataclass(slots=True)
class _Corrections:
    """Of one kind of work, by its size; between sizes that were measured the one goes over to the other."""

    by_edge: dict[int, _Correction] = field(default_factory=dict)
    edges: list[int] = field(default_factory=list)
    places: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def learn(
        self, size: float, found: float, step: int, common_variance: float = 0.0
    ) -> tuple[float, float]:
        """Take a logarithm in: a step of a Kalman filter, by Kalman (1960), without covariances.

        What differs from the value that is known is noise, or the size drifted, or all sizes did. The longer
        a size was not measured, the more of it is its own.

        Args:
            common_variance: of what all sizes have in common.

        Returns:
            By how much all sizes have changed, and the share of `common_variance` that is left.
        """
        edge = _EDGES[min(bisect_left(_EDGES, size), len(_EDGES) - 1)]
        known = self.by_edge.get(edge)
        if known is None:
            known = self.by_edge[edge] = _Correction(step=step)
            insort(self.edges, edge)
            at = self.edges.index(edge)
            self.places.insert(at, 0.0)
            self.values.insert(at, 0.0)
        if known.count >= 3:
            found = min(max(found, known.value - _MOST), known.value + _MOST)
        known.count += 1
        known.place += (math.log(size) - known.place) / min(known.count, 20)
        rest = found - known.value
        if math.isinf(known.variance):
            known.value, known.variance, common_share = found, _NOISE, 0.0
        else:
            variance = known.variance + _OWN_DRIFT * (step - known.step)
            total = variance + common_variance + _NOISE
            known.value += rest * variance / total
            known.variance = variance * (1 - variance / total)
            common_share = common_variance / total
        known.step = step
        at = bisect_left(self.edges, edge)
        self.places[at], self.values[at] = known.place, known.value
        return rest * common_share, 1 - common_share

    def at(self, place: float) -> float:
        """Of a size, given as its logarithm; 0 where nothing is known."""
        places, values = self.places, self.values
        if not places:
            return 0.0
        after = bisect_left(places, place)
        if after in (0, len(places)):
            return values[min(after, len(places) - 1)]
        share = (place - places[after - 1]) / (places[after] - places[after - 1])
        return values[after - 1] + (values[after] - values[after - 1]) * share


class MeasuredCosts:
    """Seconds of passes and of drafting: the prediction times a correction by size.

    A measurement corrects its own size and, since boxes get slower and faster as a whole, all others too.
    """

    def __init__(self, predicted: PassCosts) -> None:
        self.predicted = predicted
        self._predicted: dict[int, tuple[float, float]] = {}
        """By rows: predicted seconds, and the logarithm of rows."""
        self._common = self._common_variance = 0.0
        """The logarithm of how much slower the box is than at the time of the corrections."""
        self._steps = 0
        self._passes = _Corrections()
        self._drafting: dict[int, _Corrections] = {}
        """By depth; its sizes are numbers of sequences."""
        self._taking_in = _Corrections()
        """Its sizes are numbers of rows, all layers together."""

    @property
    def most_drafts(self) -> int:
        """MTP layers whose cost is known."""
        return len(self.predicted.draft_s)

    @property
    def is_taking_in_measured(self) -> bool:
        """Whether MTP layers took in rows that had waited, so that its cost is not guessed."""
        return bool(self._taking_in.places)

    def trunk_s(self, rows: int) -> float:
        """Of a pass of so many rows."""
        found = self._predicted.get(rows)
        if found is None:
            found = self._predicted[rows] = self.predicted.trunk_s(rows), math.log(rows)
        return found[0] * math.exp(self._common + self._passes.at(found[1]))

    def drafting_s(self, depth: int, sequences: int) -> float:
        """Of the first `depth` MTP layers drafting for so many sequences, for which few rows wait.

        Until one was measured, it is corrected as a pass of one row.
        """
        if not depth or not sequences:
            return 0.0
        known = self._drafting.get(depth)
        if known is None and self._drafting:
            known = self._drafting[min(self._drafting, key=lambda other: abs(other - depth))]
        correction = known.at(math.log(sequences)) if known else self._passes.at(0.0)
        predicted_s = self.predicted.drafting_s(depth, _ROWS_IN_DRAFTING * sequences)
        return predicted_s * math.exp(self._common + correction)

    def taking_in_s(self, rows: Sequence[int]) -> float:
        """Of so many rows more in each of the first MTP layers, which had waited for them."""
        predicted_s = self._predicted_taking_in_s(rows)
        if not predicted_s:
            return 0.0
        known = self._taking_in
        correction = known.at(math.log(sum(rows))) if known.places else self._passes.at(0.0)
        return predicted_s * math.exp(self._common + correction)

    def learn_pass(self, rows: int, seconds: float) -> None:
        """A pass of so many rows took so long."""
        if rows > 0 and seconds > 0:
            self._steps += 1
            self._common_variance += _COMMON_DRIFT
            found = math.log(seconds / self.predicted.trunk_s(rows)) - self._common
            change, left = self._passes.learn(rows, found, self._steps, self._common_variance)
            self._common += change
            self._common_variance *= left

    def learn_drafting(
        self, depth: int, sequences: int, seconds: float, taken_in: Sequence[int] = ()
    ) -> None:
        """So many MTP layers drafted for so many sequences; `taken_in`: rows of each that had waited."""
        if not depth or not sequences or seconds <= 0:
            return
        if sum(taken_in):
            # Drafting itself may have been anything between nothing and twice what is usual.
            left_s = max(seconds - self.drafting_s(depth, sequences), 0.1 * seconds)
            predicted_s = self._predicted_taking_in_s(taken_in)
            if predicted_s > 0:
                found = math.log(left_s / predicted_s) - self._common
                self._taking_in.learn(sum(taken_in), found, self._steps)
            return
        predicted_s = self.predicted.drafting_s(depth, _ROWS_IN_DRAFTING * sequences)
        if predicted_s > 0:
            corrections = self._drafting.setdefault(depth, _Corrections())
            corrections.learn(sequences, math.log(seconds / predicted_s) - self._common, self._steps)

    def _predicted_taking_in_s(self, rows: Sequence[int]) -> float:
        return sum(count * row_s for count, (_, row_s) in zip(rows, self.predicted.draft_s, strict=False))
