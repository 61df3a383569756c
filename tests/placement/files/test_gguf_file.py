"""Reading a GGUF header from a disk that fails, and arrays of texts."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import gguf
import pytest

from placement.errors import CheckpointError
from placement.files.gguf_file import GgufFile

NAMES = ["one", "naïve", ""]


def write(path: Path, names: list[str]) -> Path:
    writer = gguf.GGUFWriter(path, "step35")
    writer.add_array("names", names)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_disk_that_does_not_give_the_header_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "m.gguf", NAMES)
    real = os.fdopen

    class Failing:
        """The open file, but for what a disk error says of every read."""

        def __init__(self, handle: int) -> None:
            self.file = real(handle, "rb", closefd=False)

        def __enter__(self) -> Failing:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def fileno(self) -> int:
            return self.file.fileno()

        def read(self, count: int) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdopen", lambda handle, *_, **__: Failing(handle))
    with pytest.raises(CheckpointError) as caught:
        GgufFile.open(path, CheckpointError)
    expected = "its header cannot be read: Input/output error; check the disk and the file"
    assert str(caught.value) == f"{path}: {expected}"


def test_arrays_of_texts_are_equal_where_their_texts_are(tmp_path: Path) -> None:
    one, same = (GgufFile.open(write(tmp_path / name, NAMES), CheckpointError) for name in ("a", "b"))
    other = GgufFile.open(write(tmp_path / "c", ["one", "naïv", "e"]), CheckpointError)
    texts = one.metadata["names"]
    assert list(texts) == NAMES
    assert texts == same.metadata["names"]
    assert hash(texts) == hash(same.metadata["names"])
    assert texts != other.metadata["names"]
    assert texts != NAMES
