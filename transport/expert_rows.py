"""The rows of one MoE layer on their way to its experts: one value for the head, the wire and the workers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from transport.rounded_hidden import RoundedHidden

Hidden = NDArray[np.float32] | NDArray[np.uint16] | RoundedHidden


class ExpertRows(NamedTuple):
    """Normed rows, which experts they go to, and the grid that their sums are on.

    (A named tuple is made in a third of a frozen dataclass's time, once a request.)

    Attributes:
        hidden: [num_rows, hidden_size], float32, or uint16 that holds the bits of bfloat16, or rounded.
        expert_ids: int32 [num_rows, top_k], -1 where an expert is computed elsewhere.
        weights: float32 [num_rows, top_k].
        scale_exponents: int32 [num_rows], e of each row's grid unit 2^e (`workers.fixed_point`).
    """

    hidden: Hidden
    expert_ids: NDArray[np.int32]
    weights: NDArray[np.float32]
    scale_exponents: NDArray[np.int32]

    @property
    def num_rows(self) -> int:
        return len(self.expert_ids)

    def at(self, places: NDArray[np.intp] | NDArray[np.bool_]) -> ExpertRows:
        """Copies of some of the rows."""
        hidden, expert_ids, weights, scale_exponents = self
        return ExpertRows(hidden[places], expert_ids[places], weights[places], scale_exponents[places])
