"""A predicted curve of costs, corrected by what steps really take."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

from placement.pass_costs import PassCosts

_EDGES = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Passes of as many rows as an edge, or of more than the edge before, are taken for alike."""
_WEIGHT = 0.1
"""Of a measurement, once there are ten: slow enough for noise, and quick enough for a context that grows."""
_MOST = math.log(2)
"""So far a measurement may lie from those before it: a pass that was run again says nothing of the others."""


@dataclass(slots=True)
class _Correction:
    """The logarithm of measured by predicted seconds, at the logarithm of the mean number of rows."""

    place: float = 0.0
    value: float = 0.0
    count: int = 0

    def learn(self, rows: float, ratio: float) -> None:
        found = math.log(ratio)
        if self.count >= 3:
            found = min(max(found, self.value - _MOST), self.value + _MOST)
        self.count += 1
        weight = max(_WEIGHT, 1 / self.count)
        self.value += (found - self.value) * weight
        self.place += (math.log(rows) - self.place) * weight


class MeasuredCosts:
    """Seconds of passes and of drafting: the prediction times a correction by the number of rows.

    Between passes that were measured, the correction goes over from one to the other.
    """

    def __init__(self, predicted: PassCosts) -> None:
        self.predicted = predicted
        self._predicted: dict[int, tuple[float, float]] = {}
        """By rows: predicted seconds, and the logarithm of rows."""
        self._passes: dict[int, _Correction] = {}
        self._places: list[float] = []
        self._values: list[float] = []
        """Of `_passes`, since a step asks many times."""
        self._drafting: dict[int, _Correction] = {}

    @property
    def most_drafts(self) -> int:
        """MTP layers whose cost is known."""
        return len(self.predicted.draft_s)

    def trunk_s(self, rows: int) -> float:
        """Of a pass of so many rows."""
        if rows not in self._predicted:
            self._predicted[rows] = self.predicted.trunk_s(rows), math.log(rows)
        predicted_s, wanted = self._predicted[rows]
        return predicted_s * math.exp(self._correction(wanted))

    def drafting_s(self, depth: int, rows: float) -> float:
        """Of the first `depth` MTP layers; until one is measured, corrected as a pass of one row."""
        if not depth:
            return 0.0
        known = self._drafting.get(depth)
        if known is None and self._drafting:
            known = self._drafting[min(self._drafting, key=lambda other: abs(other - depth))]
        return self.predicted.drafting_s(depth, rows) * math.exp(
            known.value if known else self._correction(0.0)
        )

    def learn_pass(self, rows: int, seconds: float) -> None:
        """A pass of so many rows took so long."""
        if rows > 0 and seconds > 0:
            edge = _edge(rows)
            if edge not in self._passes:
                self._passes[edge] = _Correction()
                self._passes = dict(sorted(self._passes.items()))
            self._passes[edge].learn(rows, seconds / self.predicted.trunk_s(rows))
            self._places = [correction.place for correction in self._passes.values()]
            self._values = [correction.value for correction in self._passes.values()]

    def learn_drafting(self, depth: int, rows: int, seconds: float) -> None:
        """So many MTP layers took so long."""
        predicted_s = self.predicted.drafting_s(depth, rows)
        if depth and seconds > 0 and predicted_s > 0:
            self._drafting.setdefault(depth, _Correction()).learn(1, seconds / predicted_s)

    def _correction(self, wanted: float) -> float:
        places, values = self._places, self._values
        if not places:
            return 0.0
        place = bisect_left(places, wanted)
        if place in (0, len(places)):
            return values[min(place, len(places) - 1)]
        share = (wanted - places[place - 1]) / (places[place] - places[place - 1])
        return values[place - 1] + (values[place] - values[place - 1]) * share


def _edge(rows: int) -> int:
    return _EDGES[min(bisect_left(_EDGES, rows), len(_EDGES) - 1)]
