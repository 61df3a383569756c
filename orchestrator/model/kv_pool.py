"""Memory for keys and values: pages from one budget."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from placement.kv_size import KvShape


class KvPool:
    """Hands out pages of keys and values, never more than `budget_bytes` at a time.

    Pages that were given back are handed out again, so a page's bytes are zero only at first. Memory becomes
    resident when a page is first written.
    """

    __slots__ = ("_free", "_free_bytes", "budget_bytes", "used_bytes")

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self._free: defaultdict[KvShape, list[Tensor]] = defaultdict(list)
        self._free_bytes = 0

    def take(self, kv: KvShape) -> Tensor | None:
        """A page, uint8 [page_bytes], or None where the budget does not allow one more."""
        if self.used_bytes + kv.page_bytes > self.budget_bytes:
            return None
        self.used_bytes += kv.page_bytes
        if self._free[kv]:
            self._free_bytes -= kv.page_bytes
            return self._free[kv].pop()
        if self.used_bytes + self._free_bytes > self.budget_bytes:
            # Pages of other shapes are in the way.
            self._free.clear()
            self._free_bytes = 0
        return torch.zeros(kv.page_bytes, dtype=torch.uint8)

    def give_back(self, kv: KvShape, pages: Iterable[Tensor]) -> None:
        """Take pages back; nobody may use them any more."""
        for page in pages:
            self._free[kv].append(page)
            self._free_bytes += kv.page_bytes
            self.used_bytes -= kv.page_bytes
