"""Parts of a mapped file in memory: what is brought in, what is touched, what the system takes back."""

from __future__ import annotations

import mmap
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import workers.memory.mapped as mapped_files
from workers.memory.mapped import MappedWatch, Range, bring_in, joined
from workers.memory.maps import FilePlace, MappedFiles
from workers.memory.pages import PAGE_BYTES, in_memory

EXPERT_BYTES = 300_000
NUM_EXPERTS = 200


class Mapped:
    """A file of NUM_EXPERTS pieces, none of it in the page cache, mapped."""

    def __init__(self, path: Path) -> None:
        with path.open("wb") as file:
            file.write(os.urandom(EXPERT_BYTES * NUM_EXPERTS))
            file.flush()
            os.fsync(file.fileno())
        self.path = path
        self.file = path.open("rb")
        self.map = mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_READ)
        self.address = np.frombuffer(self.map, np.uint8).ctypes.data
        self.forget()

    def forget(self) -> None:
        os.posix_fadvise(self.file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def range(self, expert: int) -> Range:
        return Range(self.address + expert * EXPERT_BYTES, EXPERT_BYTES)

    @property
    def in_memory(self) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        return in_memory(self.address, len(self.map))


@pytest.fixture
def mapped(tmp_path: Path) -> Mapped:
    mapped = Mapped(tmp_path / "model.bin")
    if mapped.in_memory.any():
        pytest.skip("this filesystem lives in memory")
    return mapped


def test_two_fifths_of_the_experts_touch_two_fifths_of_the_file(mapped: Mapped) -> None:
    held = random.Random(0).sample(range(NUM_EXPERTS), 2 * NUM_EXPERTS // 5)
    seen: list[tuple[int, int]] = []
    # Some read beside each other, all told of in order.
    ranges = joined(mapped.range(expert) for expert in held)
    bring_in(ranges, lambda done, total: seen.append((done, total)))
    touched = mapped.in_memory.mean()
    assert 0.40 <= touched <= 0.41
    total = sum(part.num_bytes for part in ranges)
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)
    assert len(seen) > 1
    assert MappedWatch(ranges).missing_bytes() == 0
    assert MappedWatch(ranges).notice() is None


def test_a_stop_leaves_what_has_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[int] = []

    def fetch(step: Sequence[Range]) -> int:
        fetched.append(step[0].address)
        time.sleep(0.01)
        return 1

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(mapped_files, "_fetch", fetch)
    num_steps = 1000
    with pytest.raises(KeyboardInterrupt):
        bring_in([Range(0, num_steps * mapped_files._STEP_BYTES)], stop)
    assert 0 < len(fetched) < num_steps // 2


def test_pages_that_the_system_takes_back_are_noticed(mapped: Mapped) -> None:
    ranges = joined(mapped.range(expert) for expert in range(100))
    bring_in(ranges)
    watch = MappedWatch(ranges)
    # Pages that no process has in its table can be taken back.
    mapped.map.madvise(mmap.MADV_DONTNEED)
    mapped.forget()
    assert watch.missing_bytes() == watch.num_bytes
    notice = watch.notice()
    assert notice is not None
    assert "30.0 MB of 30.0 MB are not in memory now" in notice
    bring_in(ranges)
    assert watch.missing_bytes() == 0


def test_ranges_are_joined_by_whole_pages() -> None:
    page = PAGE_BYTES
    ranges = joined([Range(5 * page + 1, 10), Range(0, 1), Range(page - 1, 2), Range(10 * page, 3 * page)])
    assert ranges == (Range(0, 2 * page), Range(5 * page, page), Range(10 * page, 3 * page))


def test_an_address_leads_to_its_place_in_the_file(mapped: Mapped) -> None:
    files = MappedFiles.now()
    assert files.place_of(mapped.address + 777, 5000) == FilePlace(mapped.path, 777, 5000)
    assert files.place_of(mapped.address + len(mapped.map) - 10, 5000 + PAGE_BYTES) is None
    own = np.zeros(100_000, np.uint8)
    assert files.place_of(own.ctypes.data, 10) is None


def test_mappings_that_the_system_cut_are_one_and_names_may_be_odd() -> None:
    files = MappedFiles.parse(
        "10000-12000 r--s 00000000 fe:00 7 /a b\\012c.gguf\n"
        "12000-13000 r--s 00002000 fe:00 7 /a b\\012c.gguf\n"
        "13000-14000 r--s 00000000 fe:00 7 /a b\\012c.gguf\n"
        "20000-21000 r--s 00001000 fe:00 8 /gone (deleted)\n"
        "30000-31000 rw-p 00000000 00:00 0\n"
        "7ffe000-7fff000 rw-p 00000000 00:00 0 [stack]\n"
    )
    assert files.place_of(0x11FFF, 2) == FilePlace(Path("/a b\nc.gguf"), 0x1FFF, 2)
    assert files.place_of(0x12FFF, 2) is None
    assert files.place_of(0x20010, 16) == FilePlace(Path("/gone"), 0x1010, 16)
    assert files.place_of(0x30000, 1) is None
    assert files.place_of(0x5000, 1) is None
