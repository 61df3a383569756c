"""Sums of expert outputs as integers, so that no order, split or placement can change them.

The head gives each row a grid of step 2^e chosen from the row's residual, which the sum will be added to.
A worker rounds each weighted expert output to whole steps and adds integers; so does the head with the
workers' answers. Only that rounding costs accuracy, at most half a step an expert. A step is 2^-23 of the
residual's rms, so eight experts err by 0.8 steps (rms), where adding the sum to the residual in float32
errs by about 0.3.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from workers import kernels
from workers.partial_sum import PartialSum

__all__ = [
    "COARSEN_STEP",
    "COARSEST_EXPONENT",
    "GRID_BITS",
    "MAX_COARSENINGS",
    "MAX_EXPONENT",
    "MIN_EXPONENT",
    "PartialSum",
    "coarser",
    "limit",
    "scale_exponents",
    "to_float32",
]

# Steps in the residual's rms, as a power of two.
GRID_BITS = 23
# A saturated row is asked for again with a grid this many powers of two coarser, at most so many times:
# enough to reach any finite float32 from the finest grid.
COARSEN_STEP = 6
MAX_COARSENINGS = 20
MIN_EXPONENT, MAX_EXPONENT = -120, 100
# The kernels multiply by 2^-e, which must stay a normal float32 number.
COARSEST_EXPONENT = 126


def limit(top_k: int) -> int:
    """Largest magnitude of one expert's output, in grid steps, with which a sum of top_k fits int32."""
    return int((2**31 - 1) // top_k)


def scale_exponents(residual: Tensor) -> NDArray[np.int32]:
    """The grid exponent of each row of the residual [T, H] float32, before the MoE block is added.

    Returns:
        int32 [T]: floor(log2(rms)) - GRID_BITS, kept within MIN_EXPONENT to MAX_EXPONENT.
    """
    return kernels.row_exponents(residual, offset=-GRID_BITS, low=MIN_EXPONENT, high=MAX_EXPONENT)


def coarser(scale_exponents: NDArray[np.int32]) -> NDArray[np.int32]:
    """The grid on which saturated rows are asked for again."""
    return np.minimum(scale_exponents + COARSEN_STEP, COARSEST_EXPONENT, dtype=np.int32)


def to_float32(values: NDArray[np.int32], scale_exponents: NDArray[np.int32]) -> Tensor:
    """A complete sum in float32: int32 [T, H] times 2^e of each row, rounded once."""
    return kernels.grid_to_float32(values, scale_exponents)
