"""What one kind of work costs by its size: a prediction, corrected by measurements."""

from __future__ import annotations

import math
from array import array
from typing import NamedTuple

from orchestrator.scheduling.native import Corrections


class Curve(NamedTuple):
    """Seconds of work by its size; `fastest` in `depths.c` reads it too.

    Attributes:
        predicted_s: float64, from size 0 on, which does not count.
        common: the logarithm of how much slower all sizes are.
    """

    predicted_s: array[float]
    corrections: Corrections
    common: float

    def seconds(self, size: int) -> float:
        """Of that size, at least 1."""
        return self.predicted_s[size] * math.exp(self.common + self.corrections.at(math.log(size)))
