"""One stream of passes on its way through the layers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from placement.replay.queueing.pass_requests import PassRequests
from placement.replay.queueing.scenario import Stream
from placement.replay.steps import step_blocks
from placement.replay.system import System

# Passes whose requests are worked out together: enough to spread numpy's overhead, few enough to redo
# when a worker is lost.
_PASSES_AT_ONCE = 64


class Passes:
    """One stream on its way: the pass and the layer it is at, and what that layer still waits for."""

    __slots__ = (
        "_blocks",
        "epoch",
        "expert_ids",
        "head_done_s",
        "key",
        "new_tokens",
        "pending",
        "ready_s",
        "requests",
        "row",
        "start_s",
        "started_s",
        "step",
    )

    def __init__(self, system: System, stream: Stream) -> None:
        self.start_s = stream.start_s
        self._blocks = self._slices(system, stream)
        self.expert_ids, self.new_tokens = next(self._blocks)
        self.step = 0
        self.row = 0
        self.epoch = 0
        self.key: tuple[int, int] | None = None
        self.requests: PassRequests
        self.started_s = self.ready_s = self.head_done_s = 0.0
        self.pending = 0

    def advance(self) -> bool:
        """Go to the next pass; False when there is none."""
        self.step += 1
        if self.step == len(self.expert_ids):
            block = next(self._blocks, None)
            if block is None:
                return False
            self.expert_ids, self.new_tokens = block
            self.step, self.key = 0, None
        return True

    @staticmethod
    def _slices(system: System, stream: Stream) -> Iterator[tuple[NDArray[np.integer], NDArray[np.float64]]]:
        for block in step_blocks(system.shape, system.workload, stream.traces, stream.acceptance):
            for start in range(0, block.num_steps, _PASSES_AT_ONCE):
                part = slice(start, start + _PASSES_AT_ONCE)
                yield block.expert_ids[part], block.new_tokens[part]
