"""Prices at which a relaxation bounds most, found by its slopes.

Any prices give a bound; these searches only make it a good one. `boxstep` finds prices from anywhere for
shares as they are, `ascend` moves prices and shares together from prices that are nearly right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

_Floats = NDArray[np.float64]
_Shares = TypeVar("_Shares")

# How much of the largest price a price may change in the first step; the box shrinks with each.
_FIRST_STEP, _SHRINKAGE = 0.5, 0.85
# An excess of a sixth of the room is answered by a full step.
_GAIN = 6.0
# Of the trend of the excess, what one round more leaves.
_MEMORY = 0.7


class Market(Protocol[_Shares]):
    """A relaxed problem whose bound depends on a price for each place and on shares of the rents."""

    room: _Floats

    def even_shares(self) -> _Shares: ...

    def clear(self, prices: _Floats, shares: _Shares) -> tuple[float, _Floats, _Shares]:
        """The bound in seconds; places wanted, as `room`; the price of each chosen place, as the shares."""

    def move(self, shares: _Shares, paid: _Shares, rate: float) -> _Shares:
        """Shift rents to where the chosen places cost more; `rate` times price is the exponent."""


def boxstep(value_of: Callable[[_Floats], tuple[float, _Floats]], prices: _Floats, rounds: int) -> _Floats:
    """The best non-negative prices met, where `value_of` returns a concave function's value and a slope.

    Cutting planes, the next prices where all of them together allow most within a box around the best so far
    (Marsten, Hogan and Blankenship, Operations Research 23, 1975).
    """
    scale = float(prices.max())
    best, centre = -np.inf, prices
    slopes, offsets = [], []
    for index in range(rounds):
        value, slope = value_of(prices)
        if value > best:
            best, centre = value, prices
        slopes.append(slope)
        offsets.append(value - float(slope @ prices))
        unit = scale * max(float(np.abs(slopes).max()), 1e-300)
        radius = scale * _FIRST_STEP * _SHRINKAGE**index
        # Variables: the prices in units of `scale`, and the value in units of `unit`, below every plane.
        found = linprog(
            np.append(np.zeros(len(prices)), -1.0),
            A_ub=np.column_stack([np.array(slopes) * (-scale / unit), np.ones(len(slopes))]),
            b_ub=np.array(offsets) / unit,
            bounds=[
                *zip(np.maximum(centre - radius, 0.0) / scale, (centre + radius) / scale, strict=True),
                (None, None),
            ],
            method="highs",
        )
        if not found.success:
            break
        prices = np.maximum(found.x[:-1], 0.0) * scale
    return centre


def ascend(market: Market[_Shares], prices: _Floats, rounds: int, pace: float) -> tuple[float, _Floats]:
    """The best bound met while prices and shares follow their slopes, and the last prices.

    Prices of crowded devices rise and of empty ones fall, by the trend of the excess: steps that find two
    devices equally dear crowd now one and now the other. Shares move, by exponentiated gradient (Kivinen and
    Warmuth, Information and Computation 132, 1997), to the steps that pay most for the expert.

    Args:
        pace: how much the logarithm of a price may change in the first round.
    """
    best_s = 0.0
    shares = market.even_shares()
    trend = np.zeros(len(prices))
    for index in range(rounds):
        bound_s, wanted, paid = market.clear(prices, shares)
        best_s = max(best_s, bound_s)
        excess = wanted / np.maximum(market.room, 1.0) - 1
        trend = _MEMORY * trend + (1 - _MEMORY) * excess if index else excess
        if spread := float(prices.max() - prices.min()):
            shares = market.move(shares, paid, 1.5 / (1 + index / 2) / spread)
        prices = prices * np.exp(pace / (1 + index / 10) * np.clip(_GAIN * trend, -1, 1))
    return best_s, prices
