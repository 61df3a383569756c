"""What a run's tokens choose lately: counts that forget, and pieces of text for the test of a change."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

# Passes of few rows are decode steps; the median of so many is what a step takes.
_MOST_ROWS = 4
_STEPS = 64


@dataclass(frozen=True, slots=True, eq=False)
class Lately:
    """What is known of the traffic at one moment.

    Attributes:
        counts: float64 [num_layers, num_experts], choices; older ones count less.
        num_tokens: that `counts` stand for, older ones less too.
        before: uint32 [num_pieces, num_layers, num_experts], choices of pieces of the text that the plan
            is for.
        since: the same of the newest text.
        step_s: of a decode step, the head's own work and all; 0 where none is known.
    """

    counts: NDArray[np.float64]
    num_tokens: float
    before: NDArray[np.uint32]
    since: NDArray[np.uint32]
    step_s: float = 0.0


class OnlineRouting:
    """Records passes as a `RoutingRecorder` does, in bounded memory. Safe to look at from another thread.

    Args:
        half_life_tokens: after which a choice counts half.
        piece_tokens: of a piece; longer than a topic lasts, or the test sees changes where there are none.
        num_pieces: kept of the newest text, and of the text that the plan is for.
    """

    def __init__(
        self,
        moe_layers: Sequence[int],
        num_experts: int,
        *,
        half_life_tokens: int = 4096,
        piece_tokens: int = 512,
        num_pieces: int = 8,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rows = {layer: row for row, layer in enumerate(moe_layers)}
        self._half_life_tokens = half_life_tokens
        self._piece_tokens = piece_tokens
        self._unfinished = np.zeros((len(moe_layers), num_experts), dtype=np.uint32)
        self._counts = np.zeros(self._unfinished.shape)
        self._num_tokens = 0.0
        self._piece = np.zeros_like(self._unfinished)
        self._in_piece = 0
        self._before: list[NDArray[np.uint32]] = []
        self._since: deque[NDArray[np.uint32]] = deque(maxlen=num_pieces)
        self._num_pieces = num_pieces
        self._clock = clock
        self._steps_s: deque[float] = deque(maxlen=_STEPS)
        self._ended_s = math.nan
        self._lock = threading.Lock()

    def record(self, layer: int, expert_ids: NDArray[np.int32]) -> None:
        """Note int32 [num_tokens, top_k] of absolute layer `layer`; the last layer ends a pass."""
        row = self._rows[layer]
        np.add.at(self._unfinished[row], expert_ids.ravel(), 1)
        if row == len(self._rows) - 1:
            self._finish(len(expert_ids))

    def drop_unfinished(self) -> None:
        """Forget what was noted of a pass that did not reach the last layer."""
        self._unfinished[:] = 0

    def lately(self) -> Lately:
        """A copy."""
        with self._lock:
            shape = (0, *self._counts.shape)
            before, since = (
                np.stack(pieces) if pieces else np.zeros(shape, dtype=np.uint32)
                for pieces in (self._before, list(self._since))
            )
            step_s = median(self._steps_s) if self._steps_s else 0.0
            return Lately(self._counts.copy(), self._num_tokens, before, since, step_s)

    def planned(self) -> None:
        """The plan in use is for the newest text now: what comes is compared with that."""
        with self._lock:
            self._before = list(self._since)
            self._since.clear()

    def _finish(self, num_tokens: int) -> None:
        with self._lock:
            kept = 0.5 ** (num_tokens / self._half_life_tokens)
            self._counts *= kept
            self._counts += self._unfinished
            self._num_tokens = self._num_tokens * kept + num_tokens
            self._note_time(num_tokens)
            self._piece += self._unfinished
            self._in_piece += num_tokens
            if self._in_piece >= self._piece_tokens:
                # The first text is what the plan is taken to be for, unless somebody says otherwise.
                is_first = len(self._before) < self._num_pieces and not self._since
                (self._before if is_first else self._since).append(self._piece)
                self._piece, self._in_piece = np.zeros_like(self._piece), 0
        self._unfinished[:] = 0

    def _note_time(self, num_tokens: int) -> None:
        """From the end of one decode step to the next one's."""
        now_s = self._clock()
        if num_tokens > _MOST_ROWS:
            self._ended_s = math.nan
            return
        if not math.isnan(self._ended_s):
            self._steps_s.append(now_s - self._ended_s)
        self._ended_s = now_s
