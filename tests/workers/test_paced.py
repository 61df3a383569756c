"""A played memory: a request takes as long as its bytes would take, and not less."""

from __future__ import annotations

from typing import cast

import numpy as np

from transport.expert_rows import ExpertRows
from workers.fixed_point import PartialSum
from workers.holdings import Holdings
from workers.paced import PacedExperts


class Clock:
    """Time that passes when somebody computes or waits."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.waited: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def wait(self, wait_s: float) -> None:
        self.waited.append(wait_s)
        self.now_s += wait_s


class Experts:
    """Of 100 bytes each; a request takes 2 s."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def expert_bytes(self, layer: int) -> int:
        return 100

    def forward(self, layer: int, rows: ExpertRows) -> PartialSum:
        self._clock.now_s += 2.0
        return PartialSum(np.ones((rows.num_rows, 1), np.int32), np.zeros(rows.num_rows, np.bool_))


def request(*expert_ids: list[int]) -> ExpertRows:
    ids = np.array(expert_ids, np.int32)
    hidden = np.zeros((len(ids), 1), np.float32)
    return ExpertRows(hidden, ids, np.ones(ids.shape, np.float32), np.zeros(len(ids), np.int32))


def test_what_computing_took_counts_and_each_expert_is_read_once() -> None:
    clock = Clock()
    paced = PacedExperts(cast(Holdings, Experts(clock)), 50.0, clock, clock.wait)
    # Three experts, 300 bytes, 6 s; whoever wants them.
    result = paced.forward(2, request([0, 1, -1], [1, 4, 0]))
    assert (clock.now_s, clock.waited) == (6.0, [4.0])
    assert result.values.tolist() == [[1], [1]]
    # One expert's bytes would have been there before it was computed.
    paced.forward(2, request([3, -1, -1]))
    assert (clock.now_s, clock.waited) == (8.0, [4.0])
