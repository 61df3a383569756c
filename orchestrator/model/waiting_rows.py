"""Rows of one sequence that wait for an MTP layer."""

from __future__ import annotations

import ctypes
from collections import deque

import torch
from torch import Tensor

_BLOCK = 64


class WaitingRows:
    """Consecutive rows float32 [stop - start, hidden], one a slot.

    They come one or a few at a time, and most are forgotten before anybody asks for them. So they are copied
    into blocks of 64, which are used again.

    Attributes:
        start: slot of the first row.
        stop: the slot after the last one's.
    """

    __slots__ = (
        "_base",
        "_blocks",
        "_hidden_size",
        "_room",
        "_row_bytes",
        "_spare",
        "_target",
        "start",
        "stop",
    )

    def __init__(self, hidden_size: int) -> None:
        self._hidden_size = hidden_size
        self._row_bytes = 4 * hidden_size
        self._blocks: deque[Tensor] = deque()
        self._spare: Tensor | None = None
        # The slot of the first block's first row.
        self._base = 0
        # Rows that the last block still has room for, and the address of the next one.
        self._room = self._target = 0
        self.start = self.stop = 0

    def __len__(self) -> int:
        return self.stop - self.start

    def append(self, rows: Tensor) -> bool:
        """Take the rows of the next slots, float32 [n, hidden]; returns whether they began a block."""
        left = rows.shape[0]
        begun = left > self._room
        if not rows.is_contiguous():
            rows = rows.contiguous()
        source = rows.data_ptr()
        while left:
            if not self._room:
                self._add_block()
            count = min(left, self._room)
            num_bytes = count * self._row_bytes
            ctypes.memmove(self._target, source, num_bytes)
            self._target += num_bytes
            self._room -= count
            self.stop += count
            source += num_bytes
            left -= count
        return begun

    def forget_before(self, slot: int) -> None:
        """Forget blocks all of whose rows are of earlier slots."""
        if slot >= self._base + _BLOCK:
            while self._blocks and self._base + _BLOCK <= min(slot, self.stop):
                self._spare = self._blocks.popleft()
                self._base += _BLOCK
            self.start = max(self.start, self._base)

    def drop_before(self, slot: int) -> None:
        """Drop the rows of earlier slots; `slot` is not after `stop`."""
        self.start = max(self.start, slot)
        self.forget_before(self.start)

    def drop_from(self, slot: int) -> None:
        """Drop the rows of `slot` and later ones; `slot` is not before `start`."""
        self.stop = min(self.stop, slot)
        while self._blocks and self._base + _BLOCK * (len(self._blocks) - 1) >= self.stop:
            self._spare = self._blocks.pop()
        used = self.stop - self._base - _BLOCK * (len(self._blocks) - 1)
        self._room = _BLOCK - used if self._blocks else 0
        self._target = self._blocks[-1].data_ptr() + used * self._row_bytes if self._blocks else 0

    def begin_at(self, slot: int) -> None:
        """Have nothing, and go on with the row of that slot."""
        self._blocks.clear()
        self._room = 0
        self._base = self.start = self.stop = slot

    def rows(self) -> Tensor:
        """All of them. What is returned may be written over when rows are dropped and others come."""
        first, end = self.start - self._base, self.stop - self._base
        parts = [
            block[max(0, first - at) : end - at]
            for at, block in zip(range(0, end, _BLOCK), self._blocks, strict=True)
            if at + _BLOCK > first
        ]
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts) if parts else torch.empty(0, self._hidden_size)

    def _add_block(self) -> None:
        spare, self._spare = self._spare, None
        block = torch.empty(_BLOCK, self._hidden_size) if spare is None else spare
        self._blocks.append(block)
        self._room, self._target = _BLOCK, block.data_ptr()
