"""The memory of a cache: equal slots, aligned for direct reads, kept out of swap where that is allowed."""

from __future__ import annotations

import mmap
from contextlib import suppress

import psutil
import torch
from torch import Tensor

from placement.errors import WorkerStartError
from placement.units import size
from workers.memory.pages import keep_from_swap


class Slots:
    """`num_slots` pieces of `slot_bytes` each, a multiple of the alignment.

    Pages take memory when they are first written to.

    Attributes:
        num_bytes: of all slots.
        may_be_swapped: the system has swap, and this user may not lock so much memory.
    """

    def __init__(self, num_slots: int, slot_bytes: int) -> None:
        """Raises WorkerStartError where the system gives no address space."""
        num_bytes = num_slots * slot_bytes
        try:
            self._memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, ValueError, OverflowError) as error:
            raise WorkerStartError(f"a cache of {size(num_bytes)} for experts on disk: {error}") from None
        self.num_slots = num_slots
        self.num_bytes = num_bytes
        self._slot_bytes = slot_bytes
        # Few large pages are quicker to pin for a read, and to look up while computing.
        with suppress(OSError, AttributeError):
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        self._view = memoryview(self._memory)
        self._data: Tensor = torch.frombuffer(self._memory, dtype=torch.uint8)
        locked = keep_from_swap(self._data.data_ptr(), num_bytes)
        self.may_be_swapped = not locked and psutil.swap_memory().total > 0

    def buffer(self, slot: int, offset: int, num_bytes: int) -> memoryview:
        """A part of a slot to read into."""
        start = slot * self._slot_bytes + offset
        return self._view[start : start + num_bytes]

    def bytes_at(self, slot: int, offset: int, num_bytes: int) -> Tensor:
        """The same as uint8 [num_bytes]."""
        start = slot * self._slot_bytes + offset
        return self._data[start : start + num_bytes]
