"""How fast this box computes one expert in RAM, brings it to its card, and computes it there: measured once.

`placement/streaming.py` chooses by it. What is chosen changes no bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np

from placement.streaming import ExpertSeconds, StreamingRates
from transport.expert_rows import ExpertRows
from workers.gpu.card_experts import CardExperts
from workers.gpu.device import Stream
from workers.gpu.rows import Staging
from workers.gpu.streaming import Streamer
from workers.held_experts import partial_sum
from workers.kernels import ExpertWeights

ROWS = (1, 16, 128)
"""Rows of an expert that are measured. A pass of 256 rows gives most experts of a layer fewer than 128."""
_TIMES = 2


def measured_rates(
    on_card: CardExperts, streamer: Streamer, stream: Stream, layer: int, weights: ExpertWeights
) -> StreamingRates:
    """Measure with one expert of a layer, the faster of two tries of each.

    Args:
        weights: the layer's experts in RAM, at least one.

    Raises:
        DeviceFull: no room for so many rows.
        DeviceLost: the card stopped working.
    """
    expert = int(np.flatnonzero(weights.slots.numpy() >= 0)[0])
    copy_s = _seconds(partial(streamer.copy, weights, expert))
    staging, cpu_s, gpu_s = Staging(on_card.device, on_card.shape, ROWS[-1]), [], []
    on_card.reserve(stream, ROWS[-1])
    for num_rows in ROWS:
        rows = _rows(num_rows, on_card.shape.hidden, expert)
        cpu_s.append(_seconds(partial(partial_sum, weights, layer, rows)))
        at = on_card.reserve(stream, num_rows).at
        sent = on_card.prepared(layer, stream, staging.send(stream, staging.fill(rows), at))
        stream.synchronize()
        gpu_s.append(_seconds(partial(streamer.compute, stream, layer, sent, expert)))
    return StreamingRates(copy_s, _by_rows(cpu_s), _by_rows(gpu_s))


def _rows(num_rows: int, hidden_size: int, expert: int) -> ExpertRows:
    hidden = np.random.default_rng(0).standard_normal((num_rows, hidden_size), np.float32)
    ids = np.full((num_rows, 1), expert, np.int32)
    return ExpertRows(hidden, ids, np.ones((num_rows, 1), np.float32), np.zeros(num_rows, np.int32))


def _seconds(work: Callable[[], object]) -> float:
    found = []
    for _ in range(_TIMES):
        begun_s = time.perf_counter()
        work()
        found.append(time.perf_counter() - begun_s)
    return min(found)


def _by_rows(seconds: list[float]) -> ExpertSeconds:
    row_s = max(0.0, (seconds[-1] - seconds[-2]) / (ROWS[-1] - ROWS[-2]))
    return ExpertSeconds(tuple(map(float, ROWS)), tuple(seconds), row_s)
