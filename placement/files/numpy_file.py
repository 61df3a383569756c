"""The one reader of `.npy` and `.npz` files: wanted arrays only, sizes checked before memory is taken.

An array's header says its type and shape. They must fit the bytes that are there and a limit before anything
is allocated. Arrays of Python objects (pickles) are never loaded.
"""

from __future__ import annotations

import math
import os
import tokenize
import zipfile
from collections.abc import Collection, Mapping
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from placement.errors import PotluckError
from placement.files.input_file import open_input
from placement.files.quote import one_line, quote
from placement.files.zip_archive import MOST_BYTES, check_member, open_zip
from placement.units import size

NPY_MAGIC = b"\x93NUMPY"

Array = NDArray[Any]

_READ_AT_ONCE = 1 << 20
_MOST_DIMENSIONS, _MOST_LENGTHS = 8, 2**40
_READ_HEADER = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# What numpy raises for headers that are no literal of Python, or not the one expected.
_BROKEN_HEADER = (
    ValueError,
    TypeError,
    SyntaxError,
    KeyError,
    AttributeError,
    OverflowError,
    RecursionError,
    MemoryError,
    tokenize.TokenError,
)


class BrokenArray(ValueError):
    """An array that cannot be read; says why, for whoever knows where it stands."""


def array_names(
    path: str | os.PathLike[str], error: type[PotluckError], expected: str = "a .npz archive"
) -> list[str]:
    """Names of the arrays in a `.npz` file; raises as `read_npz`."""
    with open_zip(path, error, expected) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def read_npz(
    path: str | os.PathLike[str],
    error: type[PotluckError],
    expected: str,
    *,
    wanted: Collection[str] | None = None,
    most_bytes: int = MOST_BYTES,
) -> dict[str, Array]:
    """Arrays of a `.npz` file by name; what is not wanted is not read.

    Args:
        error: what is raised.
        expected: what should be there.
        wanted: names; those that are missing are left out. All without it.
        most_bytes: of all arrays together, uncompressed.

    Raises:
        error: unreadable, damaged, encrypted, larger, or with Python objects; names file and array.
    """
    with open_zip(path, error, expected) as archive:
        names = {name.removesuffix(".npy"): name for name in archive.namelist()}
        if wanted is not None:
            names = {name: entry for name, entry in names.items() if name in wanted}
        members = {name: check_member(archive, entry) for name, entry in names.items()}
        total = sum(member.file_size for member in members.values())
        if total > most_bytes:
            raise error(
                f"{path}: its arrays take {size(total)}, expected at most {size(most_bytes)} of {expected}"
            )
        return {name: _member(archive, path, error, name, member) for name, member in members.items()}


def read_npy(
    path: str | os.PathLike[str],
    error: type[PotluckError],
    expected: str,
    *,
    most_bytes: int = MOST_BYTES,
) -> Array:
    """The array of a `.npy` file.

    Raises:
        error: unreadable, damaged, larger, or of Python objects; names the file.
    """
    with open_input(path, error, expected) as file:
        num_bytes = os.fstat(file.fileno()).st_size
        try:
            return read_array(file, min(num_bytes, most_bytes))
        except (OSError, BrokenArray) as found:
            raise error(f"{path}: not a readable .npy file: {found}; expected {expected}") from found


def read_numpy_file(
    path: str | os.PathLike[str], error: type[PotluckError], expected: str, *, most_bytes: int = MOST_BYTES
) -> Array | Mapping[str, Array]:
    """The array of a `.npy` file, or all arrays of a `.npz`; raises as the reader of each."""
    with open_input(path, error, expected) as file:
        start = file.read(len(NPY_MAGIC))
    if start == NPY_MAGIC:
        return read_npy(path, error, expected, most_bytes=most_bytes)
    return read_npz(path, error, expected, most_bytes=most_bytes)


def read_array(file: BinaryIO, num_bytes: int) -> Array:
    """An array in numpy's format from a file that stands at its beginning.

    Args:
        num_bytes: that header and values may take together.

    Raises:
        BrokenArray: no such format, too large, cut off, or Python objects.
    """
    shape, is_fortran, dtype, header_bytes = _header(file)
    if dtype.hasobject or dtype.kind == "V":
        raise BrokenArray(f"values of type {quote(str(dtype))}, which plain arrays do not have")
    if len(shape) > _MOST_DIMENSIONS or any(type(length) is not int or length < 0 for length in shape):
        raise BrokenArray(f"of shape {quote(list(shape))}")
    count = math.prod(shape)
    # numpy multiplies lengths beside a 0 too. Empty texts take no bytes, however many there are.
    if math.prod(filter(None, shape)) > _MOST_LENGTHS or (count > 1 and not dtype.itemsize):
        raise BrokenArray(f"of type {dtype} and shape {quote(list(shape))}")
    if count * dtype.itemsize > num_bytes - header_bytes:
        raise BrokenArray(
            f"{dtype} {quote(list(shape))} takes {size(count * dtype.itemsize)}, there are "
            f"{size(max(num_bytes - header_bytes, 0))}"
        )
    array = np.empty(count, dtype=dtype)
    view = array.view(np.uint8).data if array.nbytes else memoryview(b"")
    done = 0
    while done < len(view):
        part = file.read(min(_READ_AT_ONCE, len(view) - done))
        if not part:
            raise BrokenArray(f"cut off after {done:,} of {len(view):,} bytes")
        view[done : done + len(part)] = part
        done += len(part)
    return array.reshape(shape, order="F" if is_fortran else "C")


def _header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[np.generic], int]:
    counted = _Counted(file)
    try:
        version = np.lib.format.read_magic(counted)  # type: ignore[arg-type]
        if version not in _READ_HEADER:
            raise BrokenArray(f"numpy format version {version[0]}.{version[1]}, expected 1.0 or 2.0")
        shape, is_fortran, dtype = _READ_HEADER[version](counted)  # type: ignore[arg-type]
    except BrokenArray:
        raise
    except _BROKEN_HEADER as found:
        raise BrokenArray(f"its header is broken: {one_line(str(found))}") from found
    return shape, is_fortran, dtype, counted.num_bytes


class _Counted:
    """Counts what is read of a header, and ends one that claims to be long."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.num_bytes = 0

    def read(self, count: int) -> bytes:
        if count > _READ_AT_ONCE:
            raise BrokenArray("its header is too long")
        part = self._file.read(count)
        self.num_bytes += len(part)
        return part


def _member(
    archive: zipfile.ZipFile,
    path: object,
    error: type[PotluckError],
    name: str,
    member: zipfile.ZipInfo,
) -> Array:
    try:
        with archive.open(member) as file:
            array = read_array(file, member.file_size)  # type: ignore[arg-type]
            # At its end zipfile compares the checksum.
            if file.read(1):
                raise BrokenArray("has more bytes than its header says")
            return array
    except BrokenArray as found:
        raise error(f"{path}: array {quote(name)}: {found}") from found
