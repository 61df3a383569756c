"""One MoE layer of one token by table look-up: a device's time depends on one small number, its experts.

All times a device can take are computed and ranked once. A step then only needs the largest rank among the
few devices that its token's experts are on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placement.cost.roofline import ExpertRates, device_seconds
from placement.cost.sharing import has_message_costs, shares


@dataclass(frozen=True, slots=True, eq=False)
class SingleTokenTimes:
    """`device_seconds` of one token. A cell is a device and a number of experts on it.

    Attributes:
        ranks: unsigned [num_devices, top_k + 1], each cell's rank by time. Of equal times the lowest device
            ranks highest. A device's ranks ascend, since more experts never take less time.
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

    def look_up(
        self, chosen: NDArray[np.unsignedinteger]
    ) -> tuple[NDArray[np.unsignedinteger], NDArray[np.int64]]:
        """The slowest cell of every step, and how often each device has each number of experts.

        Args:
            chosen: unsigned [top_k, num_steps], devices; `num_devices` stands for none.

        Returns:
            rank: of the slowest device's cell, [num_steps].
            cells: int64 [num_devices, top_k + 1].
        """
        if 2 * len(self.ranks) <= len(chosen):
            return self._look_up_devices(chosen)
        num_devices, width = self.ranks.shape
        # The n-th choice of a device finds its cell of n experts; the last one has the highest rank.
        nth = np.ones(chosen.shape, dtype=np.min_scalar_type(width))
        for distance in range(1, len(chosen)):
            nth[distance:] += chosen[distance:] == chosen[:-distance]
        cell = np.multiply(chosen, width, dtype=np.min_scalar_type((num_devices + 1) * width))
        cell += nth
        index = cell.astype(np.intp)
        # A device without experts in this step gets the rank of the slowest idle one. It can then never
        # decide the maximum, because every busy device ranks at least as high.
        ranks = np.append(self.ranks, np.zeros(width, dtype=self.ranks.dtype))
        rank = ranks.take(index).max(axis=0, initial=self.ranks[:, 0].max())
        reached = np.bincount(index.ravel(), minlength=ranks.size).reshape(-1, width)[:-1]
        reached[:, 0] = chosen.shape[1]
        cells = reached.copy()
        cells[:, :-1] -= reached[:, 1:]
        return rank, cells

    def _look_up_devices(
        self, chosen: NDArray[np.unsignedinteger]
    ) -> tuple[NDArray[np.unsignedinteger], NDArray[np.int64]]:
        """`look_up` device by device, which is faster for few."""
        of_few = np.min_scalar_type(len(chosen))
        rank = np.zeros(chosen.shape[1], dtype=self.ranks.dtype)
        cells = np.empty(self.ranks.shape, dtype=np.int64)
        for device, ranks in enumerate(self.ranks):
            count = np.add.reduce((chosen == device).view(np.uint8), axis=0, dtype=of_few).astype(np.intp)
            np.maximum(rank, ranks.take(count), out=rank)
            cells[device] = np.bincount(count, minlength=len(ranks))
        return rank, cells
