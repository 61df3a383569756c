"""A file that somebody gave us is read without waiting, up to a size, or refused in one line."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from placement.errors import InputError
from placement.files.input_file import read_bytes, read_text

EXPECTED = "a list of names"


def test_a_file_is_read_and_its_byte_order_mark_dropped(tmp_path: Path) -> None:
    path = tmp_path / "names"
    path.write_bytes(b"\xef\xbb\xbfAnna\n")
    assert read_text(path, InputError, EXPECTED, most_bytes=100) == "Anna\n"
    assert read_bytes(path, InputError, EXPECTED, most_bytes=100) == b"\xef\xbb\xbfAnna\n"


def test_a_link_to_a_file_is_followed(tmp_path: Path) -> None:
    (tmp_path / "names").write_text("Anna")
    (tmp_path / "link").symlink_to("names")
    assert read_text(tmp_path / "link", InputError, EXPECTED, most_bytes=100) == "Anna"


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _directory(path: Path) -> None:
    path.mkdir()


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("make", "what"), [(_fifo, "a pipe"), (_directory, "a directory"), (_device, "a device")]
)
def test_what_is_no_regular_file_is_refused_at_once(
    tmp_path: Path, make: Callable[[Path], None], what: str
) -> None:
    path = tmp_path / "names"
    make(path)
    with pytest.raises(InputError, match=f"names: it is {what}.*; expected a list of names"):
        read_bytes(path, InputError, EXPECTED, most_bytes=100)


def test_a_missing_file_and_an_impossible_name_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gone: No such file or directory; expected a list of names"):
        read_bytes(tmp_path / "gone", InputError, EXPECTED, most_bytes=100)
    with pytest.raises(InputError, match="null"):
        read_bytes(f"{tmp_path}/a\0b", InputError, EXPECTED, most_bytes=100)


def test_a_file_over_the_limit_is_refused_and_one_at_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "names"
    path.write_bytes(b"x" * 100)
    assert len(read_bytes(path, InputError, EXPECTED, most_bytes=100)) == 100
    with pytest.raises(InputError, match=r"larger than 99 B; expected a list of names"):
        read_bytes(path, InputError, EXPECTED, most_bytes=99)


def test_bytes_that_are_no_text_are_refused_with_their_place(tmp_path: Path) -> None:
    path = tmp_path / "names"
    path.write_bytes(b"ab\xff")
    with pytest.raises(InputError, match=r"not UTF-8 text .* at byte 2"):
        read_text(path, InputError, EXPECTED, most_bytes=100)


def test_a_limit_costs_no_memory_and_a_file_of_unknown_size_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"abc")
    tracemalloc.start()
    assert read_bytes(tmp_path / "small", InputError, "x", most_bytes=1 << 30) == b"abc"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
    # Its size is said to be 0.
    assert read_bytes("/proc/self/status", InputError, "x", most_bytes=1 << 20).startswith(b"Name:")
