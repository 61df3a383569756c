"""The rows of a layer in a card's memory, and how those of a host get there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transport.expert_rows import ExpertRows
from transport.rounded_hidden import RoundedHidden
from workers.gpu.alignment import aligned
from workers.gpu.device import Device, Stream
from workers.gpu.expert_kernels import SumSixteensArgs, WidenArgs
from workers.gpu.linear import GpuRows
from workers.gpu.workspace import Areas, WorkShape, received_bytes

_THREADS = 256


@dataclass(frozen=True, slots=True)
class RowsOnCard:
    """Rows of a layer on a card; addresses.

    Attributes:
        x: float32 [T, H]; None where they came rounded.
        expert_ids: int32 [T, k]; an expert without a slot on the card counts as computed elsewhere.
        weights: float32 [T, k].
        scale_exponents: int32 [T], within -512 to 512.
        rounded: by block, 256 or 32, where they are rounded already.
    """

    num_rows: int
    top_k: int
    x: int | None
    expert_ids: int
    weights: int
    scale_exponents: int
    rounded: Mapping[int, GpuRows] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SumOnCard:
    """Their experts' sum, once the stream is there; addresses, good until the stream is given the next rows.

    `values`: int32 [T, H]; `flags`: uint8 [T], right behind them, 1 for a row whose values mean nothing.
    """

    values: int
    flags: int


@dataclass(frozen=True, slots=True)
class RowsLayout:
    """How a host's rows lie in what is sent: what says all of it, so that equal ones need equal launches.

    Attributes:
        hidden_bytes: of a value, 4 or 2; 0 for rows that come rounded.
        blocks: of rounded rows.
    """

    num_rows: int
    top_k: int
    hidden_size: int
    hidden_bytes: int
    blocks: tuple[int, ...]

    @classmethod
    def of(cls, rows: ExpertRows) -> RowsLayout:
        hidden = rows.hidden
        num_rows, top_k = rows.expert_ids.shape
        if isinstance(hidden, RoundedHidden):
            return cls(num_rows, top_k, hidden.shape[1], 0, tuple(part.block for part in hidden.parts))
        return cls(num_rows, top_k, hidden.shape[1], hidden.itemsize, ())

    @property
    def starts(self) -> tuple[int, ...]:
        """Of ids, weights, exponents, then hidden or q and scales of each block; and the end."""
        T, k, H = self.num_rows, self.top_k, self.hidden_size
        sizes = [4 * T * k, 4 * T * k, 4 * T]
        if self.hidden_bytes:
            sizes.append(self.hidden_bytes * T * H)
        for block in self.blocks:
            sizes += [T * H, 4 * T * H // block]
        return tuple(accumulate(map(aligned, sizes), initial=0))


class Staging:
    """Page-locked memory for a host's rows on their way to a card, and for their sums on the way back.

    `rows`: the most at a time.
    """

    def __init__(self, device: Device, shape: WorkShape, rows: int) -> None:
        """Raises DeviceFull where the system locks no more pages."""
        self.rows = rows
        self._rows = device.pinned(received_bytes(shape, rows))
        self._sums = device.pinned(rows * (4 * shape.hidden + 1))

    def fill(self, rows: ExpertRows) -> RowsLayout:
        """Put rows in; what was sent before must have arrived."""
        layout = RowsLayout.of(rows)
        hidden = rows.hidden
        parts: list[NDArray[Any]] = [rows.expert_ids, rows.weights, rows.scale_exponents]
        if isinstance(hidden, RoundedHidden):
            parts += [array for part in hidden.parts for array in (part.q, part.scales)]
        else:
            parts.append(hidden)
        for array, start in zip(parts, layout.starts, strict=False):
            place = self._rows[start : start + array.nbytes]
            place.view(array.dtype).reshape(array.shape)[...] = array
        return layout

    def send(self, stream: Stream, layout: RowsLayout, at: Areas) -> RowsOnCard:
        """Begin to bring them to the card, in one copy."""
        *starts, end = layout.starts
        stream.upload(at.received, self._rows[:end])
        ids_at, weights_at, exponents_at, *hidden_at = (at.received + start for start in starts)
        count = layout.num_rows * layout.hidden_size
        x: int | None = None
        rounded: dict[int, GpuRows] = {}
        if layout.hidden_bytes == 4:
            (x,) = hidden_at
        elif layout.hidden_bytes == 2:
            x = at.x
            arguments = WidenArgs(hidden_at[0], x, count)
            stream.launch("widen_rows", (-(-count // _THREADS), 1, 1), _THREADS, arguments)
        for block, q, scales in zip(layout.blocks, hidden_at[::2], hidden_at[1::2], strict=False):
            sums = at.rounded(block).sums
            blocks = -(-count // 16 // _THREADS)
            stream.launch("sum_sixteens", (blocks, 1, 1), _THREADS, SumSixteensArgs(q, sums, count // 16))
            rounded[block] = GpuRows(q=q, scales=scales, sums=sums)
        return RowsOnCard(layout.num_rows, layout.top_k, x, ids_at, weights_at, exponents_at, rounded)

    def fetch(self, stream: Stream, found: SumOnCard, layout: RowsLayout) -> None:
        """Begin to bring a sum back."""
        num_bytes = layout.num_rows * (4 * layout.hidden_size + 1)
        stream.download(self._sums[:num_bytes], found.values)

    def sums(self, layout: RowsLayout) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """What was fetched, once the stream is there: views, until the next fetch."""
        T, H = layout.num_rows, layout.hidden_size
        values = self._sums[: 4 * T * H].view(np.int32).reshape(T, H)
        return values, self._sums[4 * T * H : (4 * H + 1) * T].view(np.bool_)
