"""One MoE layer of one token by table look-up: a device's time depends on one small number, its experts.

The closed form then needs no arithmetic for each step and device, only the largest rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placement.cost import ExpertRates, device_seconds
from placement.sharing import has_message_costs, shares


@dataclass(frozen=True, slots=True, eq=False)
class SingleTokenTimes:
    """`device_seconds` of one token, for every device and number of experts on it: a cell.

    Attributes:
        ranks: unsigned [num_devices, top_k + 1], of each cell by time, of equals the lowest device highest.
        seconds: float64 [num_cells], by rank.
        device, experts: intp [num_cells], by rank.
    """

    ranks: NDArray[np.unsignedinteger]
    seconds: NDArray[np.float64]
    device: NDArray[np.intp]
    experts: NDArray[np.intp]

    @classmethod
    def of(cls, rates: ExpertRates, top_k: int) -> SingleTokenTimes | None:
        """None where a device's time depends on what others do: a shared machine, the head's messages."""
        if shares(rates) or has_message_costs(rates):
            return None
        experts = np.repeat(np.arange(top_k + 1)[:, None], len(rates.read_s), axis=1)
        seconds = device_seconds(rates, np.minimum(experts, 1), experts, experts).T
        device = np.repeat(np.arange(len(seconds)), top_k + 1)
        order = np.lexsort((-device, seconds.ravel()))
        ranks = np.empty(seconds.size, dtype=np.min_scalar_type(seconds.size))
        ranks[order] = np.arange(seconds.size)
        return cls(
            ranks=ranks.reshape(seconds.shape),
            seconds=seconds.ravel()[order],
            device=device[order],
            experts=experts.T.ravel()[order],
        )

    def slowest(self, pairs: NDArray[np.unsignedinteger]) -> NDArray[np.unsignedinteger]:
        """Rank of the slowest device's cell, [num_steps].

        Args:
            pairs: [num_devices, num_steps], experts of each step on each device.
        """
        rank: NDArray[np.unsignedinteger] = self.ranks[0].take(pairs[0])
        for ranks, count in zip(self.ranks[1:], pairs[1:], strict=True):
            np.maximum(rank, ranks.take(count), out=rank)
        return rank

    def cells(self, pairs: NDArray[np.unsignedinteger]) -> NDArray[np.int64]:
        """How often each device has each number of experts: int64 [num_devices, top_k + 1]."""
        width = self.ranks.shape[1]
        return np.stack([np.bincount(count, minlength=width) for count in pairs])

    def cell_seconds(self) -> NDArray[np.float64]:
        """float64 [num_devices, top_k + 1]."""
        seconds: NDArray[np.float64] = self.seconds[self.ranks]
        return seconds
