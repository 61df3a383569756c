"""How fast a disk gives what no cache holds, in reads as large as an expert."""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from placement.given.probe_figures import Disk
from workers.disk.direct_file import DirectFile

_READ_BYTES = 4 << 20
_FILE_BYTES = 96 << 20
_READERS = 4
"""Reads at once, as the disk tier makes them."""


def disk(path: Path, seconds: float) -> Disk | None:
    """Of a model's file, the largest of a folder's, or one written for this; None where nothing can be read.

    Args:
        path: the model's file or folder, or any folder.
        seconds: about how long reading may take; so may writing.
    """
    folder = path if path.is_dir() else path.parent
    files = [path] if path.is_file() else sorted(folder.glob("*"), key=_size)
    if files and _size(files[-1]) >= _FILE_BYTES:
        return _measure(files[-1], folder, seconds)
    if shutil.disk_usage(folder).free < 4 * _FILE_BYTES or not os.access(folder, os.W_OK):
        return None
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        began = time.perf_counter()
        for turn in range(_FILE_BYTES // _READ_BYTES):
            if turn >= _READERS and time.perf_counter() - began > seconds:
                break
            file.write(os.urandom(_READ_BYTES))
        file.flush()
        os.fsync(file.fileno())
        return _measure(Path(file.name), folder, seconds)


def _measure(path: Path, folder: Path, seconds: float) -> Disk:
    file = DirectFile(path)
    buffers = [mmap.mmap(-1, _READ_BYTES) for _ in range(_READERS)]
    # Not from the start: it is what others read, and a page cache below us may hold it.
    blocks = file.num_bytes // _READ_BYTES
    began = time.perf_counter()

    def read(number: int) -> int:
        done = 0
        for turn in range(number, blocks, _READERS):
            block = (turn * 7919) % blocks
            with memoryview(buffers[number]) as buffer:
                done += file.read(buffer, block * _READ_BYTES)
            if time.perf_counter() - began > seconds:
                break
        return done

    try:
        with ThreadPoolExecutor(_READERS) as pool:
            done = sum(pool.map(read, range(_READERS)))
        spent_s = time.perf_counter() - began
    finally:
        file.close()
        for mapped in buffers:
            mapped.close()
    return Disk(
        folder=str(folder)[-512:],
        num_bytes=shutil.disk_usage(folder).total,
        bytes_per_s=max(1.0, done / spent_s),
        is_direct=file.is_direct,
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0
