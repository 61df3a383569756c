"""What some of a layer's experts give for rows, and the error where one is not there. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placement.errors import PotluckError


@dataclass(frozen=True, slots=True)
class PartialSum:
    """The sum of some of each row's experts.

    Attributes:
        values: int32 [T, H], in steps of each row's grid.
        saturated: bool [T], rows that left the grid or were not finite; their values mean nothing.
    """

    values: NDArray[np.int32]
    saturated: NDArray[np.bool_]


class ExpertNotHeld(PotluckError):
    """A row asks for an expert that is not in this store."""
