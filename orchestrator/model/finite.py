"""Rows that are not finite: told by the part of the model that made them, whose weights are broken."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from placement.errors import NonFiniteError
from workers import fixed_point


def check_finite(rows: Tensor, made_by: str) -> None:
    """Raise NonFiniteError, which names `made_by`, unless rows [n, width] float32 are finite."""
    if may_be_broken(fixed_point.scale_exponents(rows)) and not torch.isfinite(rows).all():
        raise broken(made_by)


def may_be_broken(scale_exponents: NDArray[np.int32]) -> bool:
    """Whether a row with these exponents is not finite, or far larger than those of any model."""
    # Plain numbers: for the few rows of a decode step faster than a comparison of arrays.
    return fixed_point.MAX_EXPONENT in scale_exponents.tolist()


def broken(what: str) -> NonFiniteError:
    """The error that `what`, such as a layer's part, gave numbers that are not finite."""
    return NonFiniteError(f"{what} gives numbers that are not finite; {NonFiniteError.REMEDY}")
