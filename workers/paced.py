"""A worker that plays one with slower memory: for measurements of clusters that are not at hand."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from placement.experts import Experts
from transport.expert_rows import ExpertRows
from workers.fixed_point import PartialSum
from workers.holdings import Holdings


class PacedExperts:
    """Experts that take at least as long as their bytes would take from a memory of this rate.

    Each expert of a request is read once, however many rows want it. What computing took counts; the rest is
    waited for.
    """

    def __init__(
        self,
        experts: Holdings,
        bytes_per_s: float,
        clock: Callable[[], float] = time.perf_counter,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._experts = experts
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._wait = wait

    @property
    def experts(self) -> Experts:
        """See `ExpertTier`, as all below."""
        return self._experts.experts

    @property
    def num_experts(self) -> int:
        return self._experts.num_experts

    @property
    def held_bytes(self) -> int:
        return self._experts.held_bytes

    def notices(self) -> tuple[str, ...]:
        return self._experts.notices()

    def forward(self, layer: int, rows: ExpertRows) -> PartialSum:
        started_s = self._clock()
        result = self._experts.forward(layer, rows)
        num_experts = len(np.unique(rows.expert_ids[rows.expert_ids >= 0]))
        due_s = started_s + num_experts * self._experts.expert_bytes(layer) / self._bytes_per_s
        left_s = due_s - self._clock()
        if left_s > 0:
            self._wait(left_s)
        return result
