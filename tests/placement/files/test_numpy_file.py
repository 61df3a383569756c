"""Arrays come back as numpy wrote them; what claims more than it holds costs one line and no memory."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from placement.errors import RoutingFileError
from placement.files.numpy_file import array_names, read_array, read_npy, read_npz, read_numpy_file
from placement.given.stats import RoutingStats
from tests.placement.shapes import small_shape

SHAPE = small_shape()
EXPECTED = "arrays"


@pytest.fixture
def peak() -> Iterator[Callable[[], int]]:
    """Bytes that were in use at most since the test began."""
    tracemalloc.start()
    start = tracemalloc.get_traced_memory()[0]
    yield lambda: tracemalloc.get_traced_memory()[1] - start
    tracemalloc.stop()


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def header(text: str, version: bytes = b"\x01\x00") -> bytes:
    body = text.encode("latin1") + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(body)) + body


@given(
    array=hnp.arrays(
        st.one_of(
            hnp.integer_dtypes(), hnp.floating_dtypes(), hnp.unicode_string_dtypes(), hnp.boolean_dtypes()
        ),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ),
    fortran=st.booleans(),
)
def test_an_array_comes_back_as_numpy_reads_it(array: Any, fortran: bool) -> None:
    data = npy(np.asfortranarray(array) if fortran else array)
    expected = np.load(io.BytesIO(data))
    found = read_array(io.BytesIO(data), len(data))
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected, equal_nan=found.dtype.kind == "f")


def test_only_wanted_arrays_are_read(tmp_path: Path, peak: Callable[[], int]) -> None:
    path = tmp_path / "a.npz"
    small = np.arange(3)
    np.savez_compressed(path, small=small, large=np.zeros(50_000_000, dtype=np.uint8))
    before = peak()
    (name, found), *others = read_npz(path, RoutingFileError, EXPECTED, wanted=["small", "none"]).items()
    assert (name, others) == ("small", [])
    assert np.array_equal(found, small)
    assert array_names(path, RoutingFileError) == ["small", "large"]
    # numpy itself took memory before.
    assert before > 50_000_000
    tracemalloc.reset_peak()
    read_npz(path, RoutingFileError, EXPECTED, wanted=["small"])
    assert peak() < 5_000_000


def bomb(path: Path, num_bytes: int, method: int = zipfile.ZIP_DEFLATED) -> None:
    """An archive with an array `trace` of zeros."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({num_bytes},), }}"
    with (
        zipfile.ZipFile(path, "w", method, compresslevel=1) as archive,
        archive.open("trace.npy", "w", force_zip64=True) as file,
    ):
        file.write(header(text))
        left = num_bytes
        while left:
            left -= file.write(bytes(min(left, 1 << 24)))


def test_what_inflates_beyond_the_limit_is_refused_before_it_is_read(
    tmp_path: Path, peak: Callable[[], int]
) -> None:
    bomb(tmp_path / "bomb.npz", 1 << 28)
    tracemalloc.reset_peak()
    with pytest.raises(RoutingFileError, match=r"arrays take 268.4 MB, expected at most 1.0 MB of arrays"):
        read_npz(tmp_path / "bomb.npz", RoutingFileError, EXPECTED, most_bytes=1_000_000)
    assert peak() < 5_000_000


def test_what_inflates_beyond_what_it_declares_is_refused(tmp_path: Path, peak: Callable[[], int]) -> None:
    path = tmp_path / "bomb.npz"
    bomb(path, 1 << 27)
    data = path.read_bytes()
    # The size in the directory, whichever form it has.
    real = (1 << 27) + len(header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({1 << 27},), }}"))
    start = data.rindex(b"PK\x01\x02")
    assert data.count(struct.pack("<I", real), start) == 1
    path.write_bytes(data[:start] + data[start:].replace(struct.pack("<I", real), struct.pack("<I", 200_000)))
    tracemalloc.reset_peak()
    with pytest.raises(
        RoutingFileError, match=r"bomb.npz: array 'trace': uint8 \[134217728\] takes 134.2 MB"
    ):
        read_npz(path, RoutingFileError, EXPECTED)
    assert peak() < 5_000_000


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(tmp_path: Path, method: int) -> None:
    bomb(tmp_path / "bomb.npz", 1000, method)
    with pytest.raises(RoutingFileError, match=r"'trace.npy' is compressed by method 1\d, not deflate"):
        read_npz(tmp_path / "bomb.npz", RoutingFileError, EXPECTED)


def test_an_encrypted_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, counts=np.arange(3))
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    path.write_bytes(data)
    with pytest.raises(RoutingFileError, match=r"a.npz: .*'counts.npy' is encrypted"):
        read_npz(path, RoutingFileError, EXPECTED)


def test_a_name_given_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("counts.npy", npy([1]))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("counts.npy", npy([2]))
    with pytest.raises(RoutingFileError, match=r"'counts.npy' is in it 2 times"):
        read_npz(path, RoutingFileError, EXPECTED)


def test_a_directory_of_a_million_members_is_refused(tmp_path: Path, peak: Callable[[], int]) -> None:
    path = tmp_path / "a.npz"
    size = 50_000_000
    with open(path, "wb") as file:
        file.truncate(size)
        file.seek(size)
        file.write(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65_535, 65_535, size, 0, 0))
    with pytest.raises(RoutingFileError, match=r"its directory is larger than 4\.2 MB"):
        read_npz(path, RoutingFileError, EXPECTED)
    assert peak() < 10_000_000


DICT = "{'descr': '<i8', 'fortran_order': False, 'shape': (3,), }"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "its header is broken"),
        (b"\x93NUMPY", "its header is broken"),
        (npy([1, 2])[:100], "its header is broken"),
        (npy([1, 2])[:-1], r"int64 \[2\] takes 16 B, there are 15 B"),
        (header(DICT, b"\x03\x00") + bytes(24), "numpy format version 3.0, expected 1.0 or 2.0"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(50), "its header is too long"),
        (header(DICT.replace("(3,)", "(300000000000,)")), r"takes 2.40 TB, there are 0 B"),
        (header(DICT.replace("(3,)", f"({10**30},)")), "of type int64 and shape"),
        (header(DICT.replace("(3,)", f"(0, {10**30})")), "of type int64 and shape"),
        (header(DICT.replace("(3,)", "(-3,)")), r"of shape \[-3\]"),
        (header(DICT.replace("(3,)", "(True,)")), "of shape"),
        (header(DICT.replace("(3,)", "(" + "1," * 60 + ")")), "of shape"),
        (header(DICT.replace("<i8", "<U0")), "of type <U0 and shape"),
        (header(DICT.replace("<i8", "|O")), "values of type 'object'"),
        (header(DICT.replace("'<i8'", "[('a', '<i8')]")), "values of type"),
        (header(DICT.replace("<i8", "<q99")), "its header is broken"),
        (header("{[]: 1}"), "its header is broken"),
        (header("("), "its header is broken"),
        (header("(" * 5000), "its header is broken"),
        (header("-" * 9000 + "1"), "its header is broken"),
        (header("{'descr': '<i8'"), "its header is broken"),
        (header("open('x')"), "its header is broken"),
    ],
)
def test_a_broken_array_is_one_line(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.npy").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("counts.npy", data)
    for read, where in (
        (
            lambda: read_npy(tmp_path / "a.npy", RoutingFileError, EXPECTED),
            "a.npy: not a readable .npy file: ",
        ),
        (lambda: read_npz(tmp_path / "a.npz", RoutingFileError, EXPECTED), "a.npz: array 'counts': "),
    ):
        with pytest.raises(RoutingFileError, match=f"{where}.*{message}") as raised:
            read()
        text = str(raised.value).removeprefix(str(tmp_path))
        assert "\n" not in text
        assert len(text) < 300


@given(place=st.integers(0, 2000), value=st.integers(0, 255))
def test_an_archive_with_any_byte_changed_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int
) -> None:
    path = tmp_path_factory.mktemp("changed") / "a.npz"
    RoutingStats.from_counts(SHAPE, np.ones((3, 10), dtype=np.uint64), 5, "even").save(path)
    data = bytearray(path.read_bytes())
    data[place % len(data)] = value
    path.write_bytes(data)
    # Some changes are of no consequence, such as a member's date.
    with suppress(RoutingFileError):
        RoutingStats.load(path, SHAPE)


def test_an_array_with_more_bytes_than_it_says_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("counts.npy", npy([1]) + b"more")
    with pytest.raises(RoutingFileError, match="has more bytes than its header says"):
        read_npz(tmp_path / "a.npz", RoutingFileError, EXPECTED)


def test_a_pipe_or_a_device_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        for read in (read_npz, read_npy, read_numpy_file):
            with pytest.raises(RoutingFileError, match=r"it is a (pipe|device).*expected arrays"):
                read(path, RoutingFileError, EXPECTED)
        with pytest.raises(RoutingFileError, match=r"it is a (pipe|device)"):
            RoutingStats.load(path)


def test_arrays_that_a_routing_file_does_not_list_cost_nothing(
    tmp_path: Path, peak: Callable[[], int]
) -> None:
    path = tmp_path / "routing.npz"
    RoutingStats.from_counts(SHAPE, np.ones((3, 10), dtype=np.uint64), 5, "even").save(path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("more.npy", npy(np.zeros(50_000_000, dtype=np.uint8)))
    tracemalloc.reset_peak()
    RoutingStats.load(path, SHAPE)
    assert peak() < 5_000_000
