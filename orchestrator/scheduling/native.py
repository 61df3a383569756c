"""The compiled part of this package (`depths.c`), or the one line that says how to build it."""

from __future__ import annotations

from array import array
from typing import NamedTuple

from placement.errors import NativeCodeNotBuilt

try:
    from orchestrator.scheduling._depths import Corrections, fastest
except ImportError as error:
    advice = "run `make demo` or `pip install -e .` in the clone"
    raise NativeCodeNotBuilt(f"orchestrator.scheduling: {error}: {advice}") from error

__all__ = ["Corrections", "Curve", "fastest"]


class Curve(NamedTuple):
    """Seconds of work by its size: `predicted_s[size] * exp(common + corrections.at(log(size)))`.

    Attributes:
        predicted_s: float64, from size 0 on, which does not count.
    """

    predicted_s: array[float]
    corrections: Corrections
    common: float
