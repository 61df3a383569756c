"""Memory for keys and values: pages from one budget."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Protocol

import torch

from placement.kv_size import KvShape


class Page(Protocol):
    """Memory of one page, of the box or of a card; a tensor is one."""

    def data_ptr(self) -> int:
        """Its address there."""
        ...


def page_in_ram(num_bytes: int) -> Page:
    """Of zeros; becomes resident when it is first written."""
    return torch.zeros(num_bytes, dtype=torch.uint8)


class KvPool:
    """Hands out pages of keys and values, never more than `budget_bytes` at a time.

    Pages that were given back are handed out again, so a page's bytes are zero only at first.

    Args:
        new_page: makes one of so many bytes, all zero.
    """

    __slots__ = ("_free", "_free_bytes", "_new_page", "budget_bytes", "used_bytes")

    def __init__(self, budget_bytes: int, new_page: Callable[[int], Page] = page_in_ram) -> None:
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self._new_page = new_page
        self._free: defaultdict[KvShape, list[Page]] = defaultdict(list)
        self._free_bytes = 0

    def take(self, kv: KvShape) -> Page | None:
        """A page of `page_bytes`, or None where the budget does not allow one more; raises as `new_page`."""
        used_bytes = self.used_bytes + kv.page_bytes
        if used_bytes > self.budget_bytes:
            return None
        if self._free[kv]:
            self._free_bytes -= kv.page_bytes
            page = self._free[kv].pop()
        else:
            if used_bytes + self._free_bytes > self.budget_bytes:
                # Pages of other shapes are in the way.
                self._free.clear()
                self._free_bytes = 0
            page = self._new_page(kv.page_bytes)
        self.used_bytes = used_bytes
        return page

    def give_back(self, kv: KvShape, pages: Iterable[Page]) -> None:
        """Take pages back; nobody may use them any more."""
        for page in pages:
            self._free[kv].append(page)
            self._free_bytes += kv.page_bytes
            self.used_bytes -= kv.page_bytes
