"""Rows of one sequence that wait for an MTP layer."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from orchestrator.model.kv_pool import KvPool, Page
from orchestrator.model.native import row_ends
from placement.errors import KvDoesNotFit
from placement.kv_size import PAGE_POSITIONS, pages_of, row_pages
from placement.units import size


class WaitingRows(row_ends.RowEnd):
    """Consecutive rows float32 [stop - start, hidden], one a slot.

    They come one or a few at a time, and most are forgotten before anybody asks for them. So they are copied
    into pages of a pool, which counts them and uses them again. Pages go back at `close`, or with the rows.

    Others may hold the same pages (`share`, `adopt`). Only who took a page from the pool writes into it, and
    behind the rows that others have. So nothing is copied unless somebody else goes on within the page, or
    new rows take the place of shared ones.

    Attributes:
        start: slot of the first row.
        stop, room, row_bytes: see `RowEnd`. The next row's place is in the last page.
        pool, kv: where pages come from, and their shape.
    """

    __slots__ = ("_base", "_hidden_size", "_pages", "_shared_stop", "kv", "pool", "start")

    def __init__(self, hidden_size: int, pool: KvPool) -> None:
        """`pool`: of RAM."""
        self._pages: list[Page] = []
        self._hidden_size = hidden_size
        self.row_bytes = 4 * hidden_size
        self.pool = pool
        self.kv = row_pages(hidden_size)
        # The slot of the first page's first row, a multiple of PAGE_POSITIONS.
        self._base = 0
        # Others may have the rows before it.
        self._shared_stop = 0
        self.start = 0

    def __del__(self) -> None:
        self._give_back()

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def nbytes(self) -> int:
        """Bytes of the pages held now."""
        return len(self._pages) * self.kv.page_bytes

    def append(self, rows: Tensor) -> None:
        """Take the rows of the next slots, float32 [n, hidden].

        Raises:
            KvDoesNotFit: the pool has no room for all of them.
        """
        done, num_rows = 0, rows.shape[0]
        rows = rows.contiguous()
        while done < num_rows:
            if not self.room:
                self._make_room()
            count = min(num_rows - done, self.room)
            append_each([(self, done, count)], rows)
            done += count

    def forget_before(self, slot: int) -> None:
        """Forget pages all of whose rows are of earlier slots."""
        if slot >= self._base + PAGE_POSITIONS:
            while self._pages and self._base + PAGE_POSITIONS <= min(slot, self.stop):
                self.pool.give_back(self.kv, (self._pages.pop(0),))
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
            self.pool.give_back(self.kv, (self._pages.pop(),))
        self._find_place()
        if self.stop < self._shared_stop:
            # Others have the rows behind it, so the next one goes into a copy of their page, if any comes.
            self.room = 0

    def begin_at(self, slot: int) -> None:
        """Have nothing, and go on with the row of that slot."""
        self._give_back()
        self._base = slot - slot % PAGE_POSITIONS
        self.start = self.stop = slot
        self.room = self._shared_stop = 0

    def share(self, start: int, stop: int) -> tuple[Page, ...]:
        """Let others hold the pages of rows that are here, those of slots from `start` to `stop` - 1."""
        if stop <= start:
            return ()
        self._shared_stop = max(self._shared_stop, stop)
        first = (start - self._base) // PAGE_POSITIONS
        return tuple(self._pages[first : pages_of(stop - self._base)])

    def adopt(self, start: int, stop: int, pages: Sequence[Page]) -> Tensor:
        """Have the rows of these slots, in pages that others hold, and nothing else.

        Args:
            pages: as `share` gives them.

        Returns:
            Rows to `append` yet, float32 [n, hidden]: their page has room for rows of others too. They are
            copies already.
        """
        self.begin_at(start)
        whole = max(0, (stop - self._base) // PAGE_POSITIONS)
        self.pool.share(self.kv, pages[:whole])
        self._pages += pages[:whole]
        if whole:
            self.stop = self._shared_stop = self._base + whole * PAGE_POSITIONS
        left = torch.empty(max(0, stop - self.stop), self._hidden_size)
        if len(left):
            source = pages[whole].data_ptr() + self.stop % PAGE_POSITIONS * self.row_bytes
            ctypes.memmove(left.data_ptr(), source, len(left) * self.row_bytes)
        return left

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
                num_bytes = (end - first) * self.row_bytes
                ctypes.memmove(target, page.data_ptr() + (first - at) * self.row_bytes, num_bytes)
                target += num_bytes
            at += PAGE_POSITIONS
        return found

    def _make_room(self) -> None:
        """For the next row at least: in a further page, or in a copy of the last one, which others have."""
        if self._pages and self.stop % PAGE_POSITIONS:
            self._own_last_page()
        else:
            self._add_page()
        self._shared_stop = min(self._shared_stop, self.stop)
        self._find_place()

    def _add_page(self) -> None:
        page = self.pool.take(self.kv)
        if page is None:
            raise self._refusal()
        self._pages.append(page)

    def _own_last_page(self) -> None:
        own = self.pool.own(self.kv, self._pages[-1])
        if own is None:
            raise self._refusal()
        self._pages[-1] = own

    def _find_place(self) -> None:
        """Where the next row goes: behind the last one in the last page."""
        at = self.stop - self._base - PAGE_POSITIONS * (len(self._pages) - 1)
        self.room = PAGE_POSITIONS - at if self._pages else 0
        self.target = self._pages[-1].data_ptr() + at * self.row_bytes if self._pages else 0

    def _give_back(self) -> None:
        if self._pages:
            self.pool.give_back(self.kv, self._pages)
            self._pages.clear()

    def _refusal(self) -> KvDoesNotFit:
        pool = self.pool
        free = pool.budget_bytes - pool.used_bytes
        return KvDoesNotFit(
            f"rows that wait for MTP layers: a page of them takes {size(self.kv.page_bytes)}, but the "
            f"pages of all sequences have {size(pool.budget_bytes)}, {size(free)} of them free; shorten "
            "the prompt, ask for fewer tokens, or go without drafts (--mtp 0)"
        )


EndPart = tuple[row_ends.RowEnd | None, int, int]
"""Where rows go, the first of them, and how many; None for nowhere."""


def append_each(parts: Sequence[EndPart], hidden_states: Tensor) -> list[int]:
    """Have several take rows of one tensor at once.

    Args:
        parts: with ends of the same hidden size; `WaitingRows` are such.
        hidden_states: contiguous float32 [num_rows, hidden].

    Returns:
        The places of those who took none: their pages have no room for all of their rows, or they have no
        end.

    Raises:
        ValueError: rows that are not there or do not lie side by side, or ends of rows of another size.
    """
    if not hidden_states.is_contiguous():
        raise ValueError("rows that are copied at once lie side by side")
    num_rows, hidden_size = hidden_states.shape
    row_bytes = hidden_size * hidden_states.element_size()
    return row_ends.append_each(parts, hidden_states.data_ptr(), num_rows, row_bytes)
