"""Zip archives that somebody gave us (`.npz`, `.pt`): bounded in directory and sizes before anything is read.

A zip file of a megabyte can claim and give gigabytes. So a member's declared size is checked first, and
reading stops there whatever the data say.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from placement.errors import PotluckError
from placement.files.input_file import open_input
from placement.files.quote import one_line, quote
from placement.units import size

MOST_BYTES = 2**31
"""Of an archive's members that are read, together: a trace of three million tokens of Step-3.5-Flash."""

# Some 90,000 members. zipfile reads the directory in one piece, data in smaller ones.
_MOST_AT_ONCE = 4 << 20
_ENCRYPTED = 0x1 | 0x40
# Others can grow without a bound while they are read.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# What zipfile raises for damaged archives, and for forms of them that it does not know.
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
    OverflowError,
)


@contextmanager
def open_zip(
    path: str | os.PathLike[str], error: type[PotluckError], expected: str
) -> Iterator[zipfile.ZipFile]:
    """An archive; what goes wrong while the block reads from it is one line that names the file.

    Raises:
        error: as `input_file.open_input`, or the file is no zip archive, damaged, or names a member twice.
    """
    with open_input(path, error, expected) as file:
        try:
            with zipfile.ZipFile(_Bounded(file)) as archive:
                (name, times), *_ = [*Counter(archive.namelist()).most_common(1), ("", 0)]
                if times > 1:
                    raise zipfile.BadZipFile(f"{quote(name)} is in it {times} times")
                yield archive
        except _DAMAGED as found:
            reason = one_line(str(found)) or type(found).__name__
            raise error(f"{path}: not a readable zip archive: {reason}; expected {expected}") from found
        except MemoryError:
            raise error(f"{path}: too large for this machine's memory; expected {expected}") from None


def check_member(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    """A member of `archive` that can be read in bounded memory: `file_size` bytes at most.

    Raises:
        zipfile.BadZipFile: encrypted, or compressed in another way than deflate.
    """
    member = archive.getinfo(name)
    if member.flag_bits & _ENCRYPTED:
        raise zipfile.BadZipFile(f"{quote(name)} is encrypted")
    if member.compress_type not in _METHODS:
        raise zipfile.BadZipFile(f"{quote(name)} is compressed by method {member.compress_type}, not deflate")
    return member


def read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytearray:
    """The bytes of a member, `file_size` at most; memory grows with what is there."""
    content = bytearray()
    with archive.open(member) as file:
        while part := file.read(_MOST_AT_ONCE // 4):
            content += part
    return content


class _Bounded:
    """The part of a file that zipfile uses; no single read is large."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, count: int = -1) -> bytes:
        # Without a count zipfile reads from the last 64 KiB to the end.
        if count > _MOST_AT_ONCE:
            raise zipfile.BadZipFile(f"its directory is larger than {size(_MOST_AT_ONCE)}")
        return self._file.read(_MOST_AT_ONCE if count < 0 else count)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True
