"""Rows of one sequence that wait for an MTP layer."""

from __future__ import annotations

import ctypes
import weakref
from collections import deque

import torch
from torch import Tensor

from orchestrator.model.kv_pool import KvPool, Page
from placement.errors import KvDoesNotFit
from placement.kv_size import PAGE_POSITIONS, KvShape, row_pages
from placement.units import size


class WaitingRows:
    """Consecutive rows float32 [stop - start, hidden], one a slot.

    They come one or a few at a time, and most are forgotten before anybody asks for them. So they are copied
    into pages of a pool, which counts them and uses them again. Pages go back at `close`, or with the rows.

    Attributes:
        start: slot of the first row.
        stop: the slot after the last one's.
    """

    __slots__ = (
        "__weakref__",
        "_base",
        "_hidden_size",
        "_kv",
        "_pages",
        "_pool",
        "_room",
        "_row_bytes",
        "_target",
        "start",
        "stop",
    )

    def __init__(self, hidden_size: int, pool: KvPool) -> None:
        """`pool`: of RAM."""
        self._hidden_size = hidden_size
        self._row_bytes = 4 * hidden_size
        self._pool = pool
        self._kv = row_pages(hidden_size)
        self._pages: deque[Page] = deque()
        # The slot of the first page's first row, a multiple of PAGE_POSITIONS.
        self._base = 0
        # Rows that the last page still has room for, and the address of the next one.
        self._room = self._target = 0
        self.start = self.stop = 0
        weakref.finalize(self, _give_back, pool, self._kv, self._pages)

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def nbytes(self) -> int:
        """Bytes of the pages held now."""
        return len(self._pages) * self._kv.page_bytes

    @property
    def room(self) -> int:
        """Rows that can be appended without a further page."""
        return self._room

    def append(self, rows: Tensor) -> None:
        """Take the rows of the next slots, float32 [n, hidden].

        Raises:
            KvDoesNotFit: the pool has no room for all of them.
        """
        left = rows.shape[0]
        if not rows.is_contiguous():
            rows = rows.contiguous()
        source = rows.data_ptr()
        while left:
            if not self._room:
                self._add_page()
            count = min(left, self._room)
            num_bytes = count * self._row_bytes
            ctypes.memmove(self._target, source, num_bytes)
            self._target += num_bytes
            self._room -= count
            self.stop += count
            source += num_bytes
            left -= count

    def forget_before(self, slot: int) -> None:
        """Forget pages all of whose rows are of earlier slots."""
        if slot >= self._base + PAGE_POSITIONS:
            while self._pages and self._base + PAGE_POSITIONS <= min(slot, self.stop):
                self._pool.give_back(self._kv, (self._pages.popleft(),))
                self._base += PAGE_POSITIONS
            self.start = max(self.start, self._base)

    def drop_before(self, slot: int) -> None:
        """Drop the rows of earlier slots; `slot` is not after `stop`."""
        self.start = max(self.start, slot)
        self.forget_before(self.start)

    def drop_from(self, slot: int) -> None:
        """Drop the rows of `slot` and later ones; `slot` is not before `start`."""
        if slot <= self.start:
            self.begin_at(min(self.stop, slot))
            return
        self.stop = min(self.stop, slot)
        while self._pages and self._base + PAGE_POSITIONS * (len(self._pages) - 1) >= self.stop:
            self._pool.give_back(self._kv, (self._pages.pop(),))
        self._find_place()

    def begin_at(self, slot: int) -> None:
        """Have nothing, and go on with the row of that slot."""
        _give_back(self._pool, self._kv, self._pages)
        self._base = slot - slot % PAGE_POSITIONS
        self.start = self.stop = slot
        self._room = 0

    def close(self) -> None:
        """Give all pages back now."""
        self.begin_at(self.stop)

    def rows(self, start: int = 0, stop: int | None = None) -> Tensor:
        """A copy of those from slot `start` to before `stop`; of all unless given."""
        start = max(start, self.start)
        stop = self.stop if stop is None else min(stop, self.stop)
        found = torch.empty(max(0, stop - start), self._hidden_size)
        target, at = found.data_ptr(), self._base
        for page in self._pages:
            first, end = max(start, at), min(stop, at + PAGE_POSITIONS)
            if end > first:
                num_bytes = (end - first) * self._row_bytes
                ctypes.memmove(target, page.data_ptr() + (first - at) * self._row_bytes, num_bytes)
                target += num_bytes
            at += PAGE_POSITIONS
        return found

    def _add_page(self) -> None:
        pool = self._pool
        page = pool.take(self._kv)
        if page is None:
            free = pool.budget_bytes - pool.used_bytes
            raise KvDoesNotFit(
                f"rows that wait for MTP layers: a page of them takes {size(self._kv.page_bytes)}, but the "
                f"pages of all sequences have {size(pool.budget_bytes)}, {size(free)} of them free; shorten "
                "the prompt, ask for fewer tokens, or go without drafts (--mtp 0)"
            )
        self._pages.append(page)
        self._find_place()

    def _find_place(self) -> None:
        """Where the next row goes: behind the last one in the last page."""
        at = self.stop - self._base - PAGE_POSITIONS * (len(self._pages) - 1)
        self._room = PAGE_POSITIONS - at if self._pages else 0
        self._target = self._pages[-1].data_ptr() + at * self._row_bytes if self._pages else 0


def _give_back(pool: KvPool, kv: KvShape, pages: deque[Page]) -> None:
    pool.give_back(kv, pages)
    pages.clear()
