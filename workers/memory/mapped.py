"""Parts of mapped files that a process works from: brought in before the first use, watched afterwards."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from placement.units import size
from workers.memory.pages import PAGE_BYTES, begin_reading, in_memory, map_in, span

OnProgress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""

# Each thread asks the disk for a step and waits for it, so that 64 MB are asked for at a time. What is in
# the page cache already is entered into the page table, which is a core's work and not the disk's.
_THREADS = 4
_STEP_BYTES = 16 * 1024 * 1024
# Fewer faults than these are the program's own, not the model's.
_FEW_FAULTS = 256
_FEW_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes at an address."""

    address: int
    num_bytes: int


def joined(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """The pages that the ranges touch, ascending, as few ranges as possible."""
    found: list[Range] = []
    for part in sorted(ranges, key=lambda part: part.address):
        start, length = span(part.address, part.num_bytes)
        if found and start <= found[-1].address + found[-1].num_bytes:
            last = found.pop()
            length = max(start + length, last.address + last.num_bytes) - last.address
            start = last.address
        found.append(Range(start, length))
    return tuple(found)


def bring_in(ranges: Sequence[Range], on_progress: OnProgress | None = None) -> None:
    """Have ranges of mapped files in memory, and nothing beside them; what is there already costs little."""
    total, done = sum(part.num_bytes for part in ranges), 0
    threads = ThreadPoolExecutor(_THREADS, "bring-in")
    try:
        # In order, because disks read fastest so.
        for num_bytes in threads.map(_fetch, _steps(ranges)):
            done += num_bytes
            if on_progress is not None:
                on_progress(done, total)
    finally:
        # Ctrl-C waits for the steps that are under way, not for the whole model.
        threads.shutdown(cancel_futures=True)


def _steps(ranges: Sequence[Range]) -> list[list[Range]]:
    """The same bytes in the same order, _STEP_BYTES a list."""
    steps: list[list[Range]] = []
    room = 0
    for part in ranges:
        start = 0
        while start < part.num_bytes:
            if not room:
                steps.append([])
                room = _STEP_BYTES
            length = min(room, part.num_bytes - start)
            steps[-1].append(Range(part.address + start, length))
            start += length
            room -= length
    return steps


def _fetch(step: Sequence[Range]) -> int:
    for part in step:
        begin_reading(part.address, part.num_bytes)
    for part in step:
        map_in(part.address, part.num_bytes)
    return sum(part.num_bytes for part in step)


class MappedWatch:
    """Sees whether the system takes back pages of ranges that were brought in.

    It may, when memory runs short: they are a file's, and come back when they are used, at the disk's speed.
    """

    def __init__(self, ranges: Sequence[Range]) -> None:
        """`ranges`: as `joined` gives them."""
        self.ranges = tuple(ranges)
        self._faults = _major_faults()

    @property
    def num_bytes(self) -> int:
        return sum(part.num_bytes for part in self.ranges)

    def reread_bytes(self) -> int:
        """Read again since the start, by this process's page faults: at least these, one page each."""
        faults = _major_faults() - self._faults
        return faults * PAGE_BYTES if faults >= _FEW_FAULTS else 0

    def missing_bytes(self) -> int:
        """Not in memory now. It looks at every page: 10 ms for a gigabyte."""
        missing = sum(int((~in_memory(part.address, part.num_bytes)).sum()) for part in self.ranges)
        return missing * PAGE_BYTES

    def notice(self) -> str | None:
        """One line where pages were taken back, None where all is well."""
        missing, reread = self.missing_bytes(), self.reread_bytes()
        if max(missing, reread) < _FEW_BYTES:
            return None
        return (
            f"the system evicts pages of the model: {size(missing)} of {size(self.num_bytes)} are not in "
            f"memory now, and at least {size(reread)} were read again; expected all of them in memory: end "
            "other programs, or hold fewer experts here"
        )


def _major_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt
