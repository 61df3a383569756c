"""Which experts of a prefill pass to copy from RAM into VRAM: link, GPU and CPU work at once.

A pass of many rows may copy experts that lie in RAM over the host link, into two buffers in turn, and have
the GPU compute them, while the CPU computes the others where they lie. docs/cost-model.md, 'Prefill'.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BUFFERS = 2
"""Experts that VRAM has room for on their way: one is copied while the other is computed."""

_MOST_ROWS = 65_536


@dataclass(frozen=True, slots=True)
class ExpertSeconds:
    """What one expert takes on a device, by its rows.

    A straight line between the points given. Below the first it is flat, beyond the last it goes on by
    `row_s` a row. Reading the expert's weights takes `read_s` meanwhile, so it never takes less.

    Attributes:
        rows: ascending, of each point.
        seconds: at each point.
        row_s: for each row beyond the last point.
        read_s: of its weights from the device's own memory.
    """

    rows: tuple[float, ...]
    seconds: tuple[float, ...]
    row_s: float
    read_s: float = 0.0

    @classmethod
    def line(cls, fixed_s: float, row_s: float, read_s: float = 0.0) -> ExpertSeconds:
        """`fixed_s` whatever the rows, and `row_s` for each."""
        return cls((0.0,), (fixed_s,), row_s, read_s)

    def of(self, rows: NDArray[np.integer]) -> NDArray[np.float64]:
        """Seconds of experts with these rows, float64 as `rows`; 0 without any."""
        beyond = np.maximum(rows - self.rows[-1], 0)
        computing = np.interp(rows, self.rows, self.seconds) + self.row_s * beyond
        seconds: NDArray[np.float64] = np.where(rows > 0, np.maximum(computing, self.read_s), 0.0)
        return seconds


@dataclass(frozen=True, slots=True)
class StreamingRates:
    """What a box needs to choose by.

    Attributes:
        copy_s: of one expert over the host link into a buffer in VRAM, with what starting a copy takes.
        cpu: of one expert where it lies, by all of the CPU's threads.
        gpu: of one expert in VRAM.
    """

    copy_s: float
    cpu: ExpertSeconds
    gpu: ExpertSeconds


@dataclass(frozen=True, slots=True, eq=False)
class StreamingChoice:
    """How a layer is best computed.

    Attributes:
        is_streamed: bool [num_experts], those to copy and compute in VRAM.
        order: int [num_streamed], the same as numbers, in the order in which to copy them.
        seconds: until the layer is done.
        cpu_s: until the CPU is done.
        stream_s: until the last copied expert is computed; 0 without any.
        all_in_ram_s: what the layer would take if nothing were copied.
    """

    is_streamed: NDArray[np.bool_]
    order: NDArray[np.intp]
    seconds: float
    cpu_s: float
    stream_s: float
    all_in_ram_s: float


def choose_streamed(
    rows: NDArray[np.integer], rates: StreamingRates, *, gpu_busy_s: float = 0.0, cpu_busy_s: float = 0.0
) -> StreamingChoice:
    """Choose which of a layer's experts in RAM to copy, so that the layer ends soonest.

    Experts that take the CPU longest go first, as many as make the layer shortest; of equals as few as do.
    For any number of them this leaves the CPU least to do and the link as much as any other choice. So it is
    the best choice where the GPU takes equally long for each. Elsewhere it is at most one expert's GPU time
    above the best, if the GPU spares at least as large a part of the CPU's time for each row as for each
    expert.

    Args:
        rows: int [num_experts], rows of each expert that lies in RAM; 0 where it has none.
        gpu_busy_s: what else the GPU computes in this layer. It gives way to copied experts.
        cpu_busy_s: what else the CPU computes in this layer.
    """
    cpu_s, gpu_s = rates.cpu.of(rows), rates.gpu.of(rows)
    order = np.lexsort((-gpu_s, -cpu_s))[: np.count_nonzero(rows)]
    ends = np.array([0.0, *_stream_ends(gpu_s[order].tolist(), rates.copy_s)])
    gpu_ends = np.maximum(ends, gpu_busy_s + np.concatenate([[0.0], np.cumsum(gpu_s[order])]))
    # Summed from the smallest on, so that nothing is left over where all are copied.
    cpu_ends = cpu_busy_s + np.concatenate([np.cumsum(cpu_s[order][::-1])[::-1], [0.0]])
    layer_s = np.maximum(gpu_ends, cpu_ends)
    count = int(layer_s.argmin())
    is_streamed = np.zeros(len(rows), dtype=np.bool_)
    is_streamed[order[:count]] = True
    return StreamingChoice(
        is_streamed=is_streamed,
        order=order[:count],
        seconds=float(layer_s[count]),
        cpu_s=float(cpu_ends[count]),
        stream_s=float(ends[count]),
        all_in_ram_s=float(layer_s[0]),
    )


def crossover_rows(rates: StreamingRates, most_rows: int = _MOST_ROWS) -> int | None:
    """The rows from which on a lone expert is done sooner by copying it and computing it in VRAM.

    Returns:
        The least number from which on that holds for all up to `most_rows`, None where it holds for none.
    """
    rows = np.arange(1, most_rows + 1)
    stays = np.flatnonzero(rates.cpu.of(rows) <= rates.copy_s + rates.gpu.of(rows))
    first = 1 if not len(stays) else int(rows[stays[-1]]) + 1
    return first if first <= most_rows else None


def _stream_ends(gpu_s: list[float], copy_s: float) -> list[float]:
    """When each of the experts copied in this order is computed, with `BUFFERS` buffers in turn."""
    ends: list[float] = []
    copied = 0.0
    for index, seconds in enumerate(gpu_s):
        # A buffer is free once the expert that lay in it is computed.
        free = ends[index - BUFFERS] if index >= BUFFERS else 0.0
        copied = max(copied, free) + copy_s
        ends.append(max(copied, ends[-1] if ends else 0.0) + seconds)
    return ends
