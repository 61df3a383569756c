"""Rows of one sequence that wait for an MTP layer."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor


class WaitingRows:
    """Consecutive rows float32 [stop - start, hidden], one a slot.

    They come in small pieces, and most of them are forgotten before anybody asks for them. So pieces are only
    put side by side when they are asked for.

    Attributes:
        start: slot of the first row.
        stop: the slot after the last one's.
    """

    __slots__ = ("_hidden_size", "_parts", "start", "stop")

    def __init__(self, hidden_size: int) -> None:
        self._hidden_size = hidden_size
        self._parts: deque[Tensor] = deque()
        self.start = self.stop = 0

    def __len__(self) -> int:
        return self.stop - self.start

    def append(self, rows: Tensor) -> None:
        """Take the rows of the next slots; they are copied, as a view would keep a whole pass alive."""
        if len(rows):
            self._parts.append(rows.clone())
            self.stop += len(rows)

    def forget_before(self, slot: int) -> None:
        """Forget pieces all of whose rows are of earlier slots."""
        parts = self._parts
        while parts and self.start + len(parts[0]) <= slot:
            self.start += len(parts.popleft())

    def drop_before(self, slot: int) -> None:
        """Drop the rows of earlier slots; `slot` is not after `stop`."""
        self.forget_before(slot)
        if slot > self.start and self._parts:
            self._parts[0] = self._parts[0][slot - self.start :]
        self.start = slot

    def drop_from(self, slot: int) -> None:
        """Drop the rows of `slot` and later ones; `slot` is not before `start`."""
        parts = self._parts
        while parts and self.stop - len(parts[-1]) >= slot:
            self.stop -= len(parts.pop())
        if parts and self.stop > slot:
            parts[-1] = parts[-1][: slot - self.stop]
        self.stop = min(self.stop, slot)

    def begin_at(self, slot: int) -> None:
        """Have nothing, and go on with the row of that slot."""
        self._parts.clear()
        self.start = self.stop = slot

    def rows(self) -> Tensor:
        """All of them; the caller does not write to them."""
        if len(self._parts) == 1:
            return self._parts[0]
        return torch.cat(tuple(self._parts)) if self._parts else torch.empty(0, self._hidden_size)
