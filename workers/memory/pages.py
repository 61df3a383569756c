"""Pages of this process's address space: read ahead, looked at, kept. Addresses need no alignment."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np
from numpy.typing import NDArray

PAGE_BYTES = mmap.PAGESIZE

# include/uapi/asm-generic/mman-common.h; Linux 5.14 has the second.
_WILLNEED = mmap.MADV_WILLNEED
_POPULATE_READ = 22
_LOCK_ON_FAULT = 1
# The system reads no more for one such call than its readahead allows, which is 128 KiB on most machines.
_READ_AHEAD_BYTES = 128 * 1024

_libc = ctypes.CDLL(None, use_errno=True)
for _name in ("madvise", "mincore", "mlock2"):
    getattr(_libc, _name).restype = ctypes.c_int
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
_libc.mlock2.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint)


def span(address: int, num_bytes: int) -> tuple[int, int]:
    """First page's address and the bytes of all pages that a piece touches."""
    start = address - address % PAGE_BYTES
    end = -(-(address + num_bytes) // PAGE_BYTES) * PAGE_BYTES
    return start, end - start


def begin_reading(address: int, num_bytes: int) -> None:
    """Have the system read these pages, and no others, without waiting for them."""
    start, length = span(address, num_bytes)
    for place in range(0, length, _READ_AHEAD_BYTES):
        _libc.madvise(start + place, min(_READ_AHEAD_BYTES, length - place), _WILLNEED)


def map_in(address: int, num_bytes: int) -> None:
    """Wait until these pages are in memory and in this process's page table.

    On a system that cannot do that, pages come when they are first used.
    """
    _libc.madvise(*span(address, num_bytes), _POPULATE_READ)


def let_go(address: int, num_bytes: int) -> None:
    """Take pages of a mapped file out of this process's table; the page cache keeps them.

    Never of memory of the process's own: that would be lost.
    """
    _libc.madvise(*span(address, num_bytes), mmap.MADV_DONTNEED)


def in_memory(address: int, num_bytes: int) -> NDArray[np.bool_]:
    """Of each page that a piece touches, whether it is in memory, in this process's table or not."""
    start, length = span(address, num_bytes)
    states = np.zeros(length // PAGE_BYTES, np.uint8)
    if _libc.mincore(start, length, states.ctypes.data) != 0:
        states[:] = 1
    return (states & 1).astype(np.bool_)


def keep_from_swap(address: int, num_bytes: int) -> bool:
    """Keep pages, once they are used, out of swap; False where this user may lock no more memory."""
    return bool(_libc.mlock2(*span(address, num_bytes), _LOCK_ON_FAULT) == 0)
