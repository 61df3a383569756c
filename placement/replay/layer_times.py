"""One MoE layer of steps of few tokens: a device's time by table look-up, and who is slowest.

The time of a device alone on its machine depends on three small counts. Each combination is computed once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placement.cost.roofline import ExpertRates, wire_seconds, work_alone_seconds
from placement.cost.sharing import has_message_costs, shares


@dataclass(frozen=True, slots=True, eq=False)
class LayerTimes:
    """The parts of `device_seconds` by what they depend on.

    Attributes:
        wait_s: float64 [num_devices, num_tokens + 1], busy_s and the wire, by rows.
        expert_s: float64 [num_devices, (choices + 1)^2], by distinct * (choices + 1) + pairs.
        width: choices + 1.
    """

    wait_s: NDArray[np.float64]
    expert_s: NDArray[np.float64]
    width: int

    @classmethod
    def of(cls, rates: ExpertRates, num_tokens: int, top_k: int) -> LayerTimes | None:
        """None where a device's time depends on what others do: a shared machine, the head's messages."""
        if shares(rates) or has_message_costs(rates):
            return None
        width = num_tokens * top_k + 1
        counts, rows = np.arange(width)[:, None], np.arange(num_tokens + 1)[:, None]
        of_cell = work_alone_seconds(rates, counts.repeat(width, axis=0), np.tile(counts, (width, 1)))
        return cls(
            wait_s=np.ascontiguousarray((rates.busy_s + wire_seconds(rates, rows)).T),
            expert_s=np.ascontiguousarray(of_cell.T),
            width=width,
        )

    def look_up(
        self,
        device: int,
        rows: NDArray[np.unsignedinteger],
        distinct: NDArray[np.unsignedinteger],
        pairs: NDArray[np.unsignedinteger],
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """When a device's part is back, as `device_seconds` adds it up, and its work: float64 [num_steps]."""
        cell = np.multiply(distinct, self.width, dtype=np.min_scalar_type(self.width**2))
        cell += pairs
        work_s = self.expert_s[device].take(cell)
        return self.wait_s[device].take(rows) + work_s, work_s


def first_largest(
    parts: Iterable[NDArray[np.float64]],
) -> tuple[NDArray[np.float64], NDArray[np.unsignedinteger]]:
    """For each step the largest number and which part has it, of equals the first; parts: [num_steps].

    Parts are used up one by one, so that they need not be in memory together.
    """
    largest = which = None
    for index, part in enumerate(parts):
        if largest is None or which is None:
            largest, which = part.copy(), np.zeros(len(part), dtype=np.uint16)
            continue
        # Remember the last part that was larger than all before it. Without branches: the processor would
        # predict half of them wrong.
        larger = part > largest
        np.maximum(which, larger.view(np.uint8) * np.uint16(index), out=which)
        np.maximum(largest, part, out=largest)
    if largest is None or which is None:
        raise ValueError("first_largest: expected at least one part")
    return largest, which
