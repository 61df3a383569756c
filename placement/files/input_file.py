"""The one way a file that somebody gave us is read: regular files only, up to a size, never waiting.

Opening a FIFO waits for a writer, and reading a device may never end, so neither is opened for reading.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from placement.errors import PotluckError
from placement.units import size

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@contextmanager
def open_input(path: str | os.PathLike[str], error: type[PotluckError], expected: str) -> Iterator[BinaryIO]:
    """A regular file, open for reading bytes; a link to one counts as one.

    Args:
        error: what is raised.
        expected: what should be there, such as "a plan: `potluck plan` writes one".

    Raises:
        error: there is no such file, it cannot be opened, or it is something else; names it.
    """
    try:
        # Without O_NONBLOCK the open itself would wait for a FIFO's writer.
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as found:
        # ValueError: a name with a zero byte, which no file can have.
        reason = found.strerror if isinstance(found, OSError) else str(found)
        raise error(f"{path}: {reason}; expected {expected}") from found
    try:
        kind = stat.S_IFMT(os.fstat(handle).st_mode)
        if kind != stat.S_IFREG:
            raise error(f"{path}: it is {_KINDS.get(kind, 'no regular file')}; expected {expected}")
        with os.fdopen(handle, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(handle)


def read_bytes(
    path: str | os.PathLike[str], error: type[PotluckError], expected: str, *, most_bytes: int
) -> bytes:
    """All of a regular file.

    Raises:
        error: as `open_input`, or the file has more than `most_bytes`.
    """
    with open_input(path, error, expected) as file:
        try:
            # Python makes room for all that is asked for, so no more than the file's size at first.
            num_bytes = os.fstat(file.fileno()).st_size
            content = file.read(min(num_bytes, most_bytes) + 1)
            if num_bytes < len(content) <= most_bytes:
                # It grew, or is one of /proc, which say 0.
                content += file.read(most_bytes + 1 - len(content))
        except OSError as found:
            raise error(f"{path}: {found.strerror}; expected {expected}") from found
    if len(content) > most_bytes:
        raise error(f"{path}: larger than {size(most_bytes)}; expected {expected}")
    return content


def digest(path: str | os.PathLike[str], error: type[PotluckError], expected: str) -> str:
    """SHA-256 of a regular file of any size, in hexadecimal digits; raises as `open_input`."""
    with open_input(path, error, expected) as file:
        sha256 = hashlib.sha256()
        while part := file.read(1 << 20):
            sha256.update(part)
    return sha256.hexdigest()


def read_text(
    path: str | os.PathLike[str], error: type[PotluckError], expected: str, *, most_bytes: int
) -> str:
    """All of a regular file of UTF-8 text; a byte order mark in front is dropped.

    Raises:
        error: as `read_bytes`, or the bytes are no UTF-8.
    """
    content = read_bytes(path, error, expected, most_bytes=most_bytes)
    return decode_text(content, error, str(path), expected)


def decode_text(content: bytes, error: type[PotluckError], where: str, expected: str) -> str:
    """UTF-8 text without a byte order mark; `where` it stands is named in errors.

    Raises:
        error: the bytes are no UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as found:
        raise error(
            f"{where}: not UTF-8 text ({found.reason} at byte {found.start}); expected {expected}"
        ) from None
