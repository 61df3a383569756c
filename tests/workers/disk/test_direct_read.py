"""Reads past the page cache: the same bytes, and errors that name the file."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

import pytest

from placement.errors import CheckpointError
from workers.disk.direct_file import ALIGNMENT, DirectFile
from workers.disk.reader import Piece, PieceReader
from workers.disk.windows import slot_bytes, windows_of
from workers.memory.maps import FilePlace

NUM_BYTES = 20 * ALIGNMENT + 100


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(os.urandom(NUM_BYTES))
    return path


@pytest.mark.parametrize("refused", [False, True], ids=["direct", "through the page cache"])
def test_bytes_are_the_files(path: Path, refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if refused:
        opened = os.open

        def refuse(name: Path, flags: int) -> int:
            if flags & os.O_DIRECT:
                raise OSError(errno.EINVAL, "Invalid argument")
            return opened(name, flags)

        monkeypatch.setattr(os, "open", refuse)
    file = DirectFile(path)
    assert not (refused and file.is_direct)
    content = path.read_bytes()
    memory = memoryview(mmap.mmap(-1, 8 * ALIGNMENT))
    assert file.read(memory, ALIGNMENT) == 8 * ALIGNMENT
    assert bytes(memory) == content[ALIGNMENT : 9 * ALIGNMENT]
    # The last block of a file is no whole one.
    assert file.read(memory, 16 * ALIGNMENT) == NUM_BYTES - 16 * ALIGNMENT
    assert bytes(memory)[: NUM_BYTES - 16 * ALIGNMENT] == content[16 * ALIGNMENT :]
    assert file.read(memory, 24 * ALIGNMENT) == 0
    file.close()


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.gguf: No such file.*expected a file of the model"):
        DirectFile(tmp_path / "gone.gguf")


def test_windows_hold_their_matrices(path: Path) -> None:
    content = path.read_bytes()
    places = [
        FilePlace(path, 5000, 9000),
        FilePlace(path, 3 * ALIGNMENT, ALIGNMENT),
        FilePlace(path, 81920, 100),
    ]
    windows = windows_of(places)
    reader, file = PieceReader(3), DirectFile(path)
    slot = memoryview(mmap.mmap(-1, slot_bytes(windows)))
    assert len(slot) == (3 + 1 + 1) * ALIGNMENT
    for tag, window in enumerate(windows):
        buffer = slot[window.slot_offset : window.slot_offset + window.num_bytes]
        reader.ask(Piece(file, window.offset, buffer, window.least_bytes, tag))
    arrivals = [reader.next_arrival() for _ in windows]
    assert sorted(arrival.tag for arrival in arrivals) == [0, 1, 2]
    assert [arrival.error for arrival in arrivals] == [None] * 3
    assert not reader.has_arrivals()
    for place, window in zip(places, windows, strict=True):
        start = window.slot_offset + window.shift
        assert slot[start : start + place.num_bytes] == content[place.offset : place.offset + place.num_bytes]


def test_a_file_that_was_cut_is_said_with_its_piece(path: Path) -> None:
    (window,) = windows_of([FilePlace(path, 2 * ALIGNMENT, 5 * ALIGNMENT)])
    reader, file = PieceReader(1), DirectFile(path)
    os.truncate(path, 4 * ALIGNMENT)
    buffer = memoryview(mmap.mmap(-1, window.num_bytes))
    reader.ask(Piece(file, window.offset, buffer, window.least_bytes, 7))
    arrival = reader.next_arrival()
    assert arrival.tag == 7
    assert str(arrival.error) == (
        f"{path}: ends at byte {4 * ALIGNMENT:,}, expected {7 * ALIGNMENT:,} at least: the file was cut "
        "while it was in use"
    )


def test_a_disk_that_fails_is_said(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = DirectFile(path)

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(CheckpointError, match=r"gguf: cannot read 4,096 bytes at 0: Input/output error"):
        file.read(memoryview(mmap.mmap(-1, ALIGNMENT)), 0)
