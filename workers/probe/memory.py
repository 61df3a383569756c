"""How fast memory is read, by the number of threads that read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from placement.given.probe_figures import ReadRate
from workers.probe.clocks import usual_s
from workers.probe.hardware import last_cache_bytes

_LEAST_FAR_BYTES = 128 << 20


def far_bytes() -> int:
    """More than caches hold, several times over."""
    return max(_LEAST_FAR_BYTES, 3 * last_cache_bytes())


def read_rates(cores: int, seconds: float) -> tuple[ReadRate, ...]:
    """With 1, 2, 4, … threads, and with as many as there are cores.

    Args:
        seconds: for all together.
    """
    numbers = thread_numbers(cores)
    num_bytes = far_bytes()
    words = torch.ones(num_bytes // 4)
    found = []
    for number in numbers:
        with threads(number):
            spent_s = usual_s(words.sum, seconds / len(numbers))
        found.append(ReadRate(threads=number, bytes_per_s=num_bytes / spent_s))
    return tuple(found)


def thread_numbers(cores: int) -> tuple[int, ...]:
    """1, 2, 4, … and `cores`."""
    return tuple(sorted({min(cores, 2**power) for power in range(cores.bit_length() + 1)}))


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Kernels use so many within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
