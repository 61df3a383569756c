"""Memory for keys and values: pages from one budget, each held by as many as share it."""

from __future__ import annotations

import ctypes
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np
import torch

from placement.kv_size import KvShape

_CACHE_LINE = 64


class Page(Protocol):
    """Memory of one page, of the box or of a card; a tensor is one."""

    def data_ptr(self) -> int:
        """Its address there."""
        ...


def page_in_ram(num_bytes: int) -> Page:
    """Of zeros, resident once it is first written; torch's own zeros are resident at once.

    It begins at a cache line: off it, each load of a vector takes two lines.
    """
    memory = torch.from_numpy(np.zeros(num_bytes + _CACHE_LINE, np.uint8))
    start = -memory.data_ptr() % _CACHE_LINE
    return memory[start : start + num_bytes]


def copy_in_ram(source: Page, target: Page, num_bytes: int) -> None:
    """Between two pages of the box."""
    ctypes.memmove(target.data_ptr(), source.data_ptr(), num_bytes)


class _Holders:
    """How many hold a page: running sequences, and kept prefixes."""

    __slots__ = ("kept", "running")

    def __init__(self) -> None:
        self.running = 1
        self.kept = 0


class KvPool:
    """Hands out pages of keys and values, never more than `budget_bytes` at a time.

    A page may have several holders: running sequences, and prefixes that are kept for sequences to come. It
    comes back with its last one. Pages that came back are handed out again, so a page's bytes are zero only
    at first.

    Not for several threads.

    Attributes:
        used_bytes: of pages that running sequences hold, each counted once.
        kept_bytes: of pages that kept prefixes hold and no running sequence does. They give way.
        held_bytes: of pages that kept prefixes hold, whoever else does.
        make_room: called while a sequence lacks room and something is kept: it lets go of some of it, and
            says False where it had nothing.
    """

    __slots__ = (
        "_copy_page",
        "_free",
        "_free_bytes",
        "_holders",
        "_new_page",
        "budget_bytes",
        "held_bytes",
        "kept_bytes",
        "make_room",
        "used_bytes",
    )

    def __init__(
        self,
        budget_bytes: int,
        new_page: Callable[[int], Page] = page_in_ram,
        copy_page: Callable[[Page, Page, int], None] = copy_in_ram,
    ) -> None:
        """
        Args:
            new_page: makes one of so many bytes, all zero.
            copy_page: copies so many bytes of the first page to the second.
        """
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self.kept_bytes = 0
        self.held_bytes = 0
        self.make_room: Callable[[KvPool], bool] | None = None
        self._new_page = new_page
        self._copy_page = copy_page
        self._free: defaultdict[KvShape, list[Page]] = defaultdict(list)
        self._free_bytes = 0
        self._holders: dict[int, _Holders] = {}

    def take(self, kv: KvShape) -> Page | None:
        """A page of `page_bytes` for a running sequence; raises as `new_page`.

        Returns:
            None where running sequences leave no room for one more.
        """
        if self.used_bytes + kv.page_bytes > self.budget_bytes:
            return None
        while self.used_bytes + self.kept_bytes + kv.page_bytes > self.budget_bytes:
            if not self._let_some_go():
                return None
        page = self._free_page(kv)
        if page is None:
            page = self._made(kv)
        self.used_bytes += kv.page_bytes
        self._holders[page.data_ptr()] = _Holders()
        return page

    def share(self, kv: KvShape, pages: Iterable[Page]) -> None:
        """Count one more running sequence as holder of pages that have one."""
        for page in pages:
            holders = self._holders[page.data_ptr()]
            if not holders.running:
                self.kept_bytes -= kv.page_bytes
                self.used_bytes += kv.page_bytes
            holders.running += 1

    def give_back(self, kv: KvShape, pages: Iterable[Page]) -> None:
        """Count one running sequence less as holder; it may not use the pages any more.

        Raises:
            ValueError: no running sequence holds one of them.
        """
        for page in pages:
            holders = self._holders.get(page.data_ptr())
            if holders is None or not holders.running:
                raise ValueError("a page was given back that no sequence holds")
            holders.running -= 1
            if not holders.running:
                self.used_bytes -= kv.page_bytes
                self.kept_bytes += kv.page_bytes
                self._free_if_nobody_holds(kv, page, holders)

    def keep(self, kv: KvShape, pages: Iterable[Page]) -> None:
        """Count a kept prefix as one more holder of pages that have one."""
        for page in pages:
            holders = self._holders[page.data_ptr()]
            if not holders.kept:
                self.held_bytes += kv.page_bytes
            holders.kept += 1

    def let_go(self, kv: KvShape, pages: Iterable[Page]) -> None:
        """Count one kept prefix less as holder.

        Raises:
            ValueError: no kept prefix holds one of them.
        """
        for page in pages:
            holders = self._holders.get(page.data_ptr())
            if holders is None or not holders.kept:
                raise ValueError("a page was let go that no kept prefix holds")
            holders.kept -= 1
            if not holders.kept:
                self.held_bytes -= kv.page_bytes
            if not holders.running:
                self._free_if_nobody_holds(kv, page, holders)

    def own(self, kv: KvShape, page: Page) -> Page | None:
        """Let a running sequence write into a page of its own that others may hold too.

        Returns:
            The page itself where nobody else holds it, also because kept prefixes let it go for lack of room;
            else a copy, and the sequence holds that in its place; None where there is no room for one.
        """
        holders = self._holders[page.data_ptr()]
        if holders.running + holders.kept == 1:
            return page
        copy = self.take(kv)
        while copy is None and holders.running == 1 and holders.kept and self._let_some_go():
            pass
        if holders.running + holders.kept == 1:
            if copy is not None:
                self.give_back(kv, (copy,))
            return page
        if copy is not None:
            self._copy_page(page, copy, kv.page_bytes)
            self.give_back(kv, (page,))
        return copy

    def is_kept_once(self, page: Page) -> bool:
        """Whether one kept prefix is all that holds it, so that it is free without that one."""
        holders = self._holders[page.data_ptr()]
        return holders.kept == 1 and not holders.running

    def _free_if_nobody_holds(self, kv: KvShape, page: Page, holders: _Holders) -> None:
        if holders.kept:
            return
        del self._holders[page.data_ptr()]
        self.kept_bytes -= kv.page_bytes
        self._free[kv].append(page)
        self._free_bytes += kv.page_bytes

    def _let_some_go(self) -> bool:
        return self.make_room is not None and self.make_room(self)

    def _free_page(self, kv: KvShape) -> Page | None:
        if not self._free[kv]:
            return None
        self._free_bytes -= kv.page_bytes
        return self._free[kv].pop()

    def _made(self, kv: KvShape) -> Page:
        """A new one; where that fails, one that was kept."""
        if self.used_bytes + self.kept_bytes + self._free_bytes + kv.page_bytes > self.budget_bytes:
            # Pages of other shapes are in the way.
            self._free.clear()
            self._free_bytes = 0
        try:
            return self._new_page(kv.page_bytes)
        except Exception:
            # Others may have taken memory that the budget counts on. Sequences go before what is kept.
            while self.kept_bytes and self._let_some_go():
                page = self._free_page(kv)
                if page is not None:
                    return page
            raise
