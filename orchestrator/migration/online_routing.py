"""What a run's tokens choose lately: the choices themselves, in pieces, as many as fit in bounded memory."""

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

    A piece is uint16 [num_tokens, num_layers, top_k], the experts that successive tokens chose.

    Attributes:
        before: pieces of the text that the plan is for.
        since: of the newest text, oldest first.
        rest: of the text after that, pass by pass: too little for a piece yet.
        step_s: of a decode step, the head's own work and all; 0 where none is known.
    """

    before: tuple[NDArray[np.uint16], ...] = ()
    since: tuple[NDArray[np.uint16], ...] = ()
    rest: tuple[NDArray[np.uint16], ...] = ()
    step_s: float = 0.0


NOTHING = Lately()


class OnlineRouting:
    """Records passes as a `RoutingRecorder` does, in bounded memory. Safe to look at from another thread.

    Older text is forgotten: of the newest `num_pieces` pieces are kept. What they take is
    2 * num_pieces * piece_tokens * num_layers * top_k * 2 bytes at most, 5.5 MB for Step-3.5-Flash, and one
    pass more for each piece.

    Args:
        piece_tokens: of a piece; longer than a topic lasts, or the test sees changes where there are none.
        num_pieces: kept of the newest text, and of the text that the plan is for.
        known: what is known already, of runs before this one.
    """

    def __init__(
        self,
        moe_layers: Sequence[int],
        *,
        piece_tokens: int = 512,
        num_pieces: int = 8,
        known: Lately = NOTHING,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._last_layer = moe_layers[-1]
        self._piece_tokens = piece_tokens
        self._unfinished: list[NDArray[np.uint16]] = []
        self._piece: list[NDArray[np.uint16]] = list(known.rest)
        self._in_piece = sum(map(len, known.rest))
        self._before: list[NDArray[np.uint16]] = list(known.before[:num_pieces])
        self._since: deque[NDArray[np.uint16]] = deque(known.since, maxlen=num_pieces)
        self._num_pieces = num_pieces
        self._clock = clock
        self._steps_s: deque[float] = deque(maxlen=_STEPS)
        self._ended_s = math.nan
        self._lock = threading.Lock()

    def record(self, layer: int, expert_ids: NDArray[np.int32]) -> None:
        """Note int32 [num_tokens, top_k] of layer `layer`. Layers come in order, and the last ends a pass."""
        self._unfinished.append(expert_ids.astype(np.uint16))
        if layer == self._last_layer:
            self._finish()

    def drop_unfinished(self) -> None:
        """Forget what was noted of a pass that did not reach the last layer."""
        self._unfinished.clear()

    def lately(self) -> Lately:
        """What is known now; pieces are never changed."""
        with self._lock:
            step_s = median(self._steps_s) if self._steps_s else 0.0
            return Lately(tuple(self._before), tuple(self._since), tuple(self._piece), step_s)

    def planned(self) -> None:
        """The plan in use is for the newest text now: what comes is compared with that."""
        with self._lock:
            self._before = list(self._since)
            self._since.clear()

    def _finish(self) -> None:
        chosen = np.stack(self._unfinished, axis=1)
        self._unfinished.clear()
        with self._lock:
            self._note_time(len(chosen))
            self._piece.append(chosen)
            self._in_piece += len(chosen)
            if self._in_piece >= self._piece_tokens:
                # The first text is what the plan is taken to be for, unless somebody says otherwise.
                is_first = len(self._before) < self._num_pieces and not self._since
                (self._before if is_first else self._since).append(np.concatenate(self._piece))
                self._piece, self._in_piece = [], 0

    def _note_time(self, num_tokens: int) -> None:
        """From the end of one decode step to the next one's."""
        now_s = self._clock()
        if num_tokens > _MOST_ROWS:
            self._ended_s = math.nan
            return
        if not math.isnan(self._ended_s):
            self._steps_s.append(now_s - self._ended_s)
        self._ended_s = now_s
