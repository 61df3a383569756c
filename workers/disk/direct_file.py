"""Reads of a file that leave no trace in the page cache."""

from __future__ import annotations

import os
import weakref
from pathlib import Path

from placement.errors import CheckpointError, ModelFilesFailed

ALIGNMENT = 4096
"""Of offsets, lengths and addresses: what every disk accepts."""


class DirectFile:
    """An open file, read past the page cache (O_DIRECT) where its filesystem can.

    Attributes:
        is_direct: whether it can; where not, pages are given up after each read.
    """

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError where it cannot be opened."""
        self.path = path
        try:
            self._descriptor, self.is_direct = _open(path)
        except OSError as error:
            raise CheckpointError(f"{path}: {error.strerror}; expected a file of the model") from None
        self._closed = weakref.finalize(self, os.close, self._descriptor)

    @property
    def num_bytes(self) -> int:
        """Now: a file that shrinks while it is in use says so."""
        return os.fstat(self._descriptor).st_size

    def read(self, buffer: memoryview, offset: int) -> int:
        """Fill `buffer` from `offset` on, all three aligned; threads may call it side by side.

        Returns:
            Bytes read: fewer than the buffer has only at the file's end.

        Raises:
            ModelFilesFailed: the disk does not give them.
        """
        done = 0
        try:
            while done < len(buffer):
                count = os.preadv(self._descriptor, [buffer[done:]], offset + done)
                done += count
                # What is no whole blocks is the file's last: nothing behind it could be read directly.
                if count == 0 or count % ALIGNMENT:
                    break
            if not self.is_direct:
                os.posix_fadvise(self._descriptor, offset, len(buffer), os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise ModelFilesFailed(
                f"{self.path}: cannot read {len(buffer):,} bytes at {offset:,}: {error.strerror}; check the "
                "disk and the file"
            ) from None
        return done

    def close(self) -> None:
        """Also done when the object is let go."""
        self._closed()


def _open(path: Path) -> tuple[int, bool]:
    flags = os.O_RDONLY | os.O_CLOEXEC
    direct = getattr(os, "O_DIRECT", 0)
    if direct:
        try:
            return os.open(path, flags | direct), True
        except OSError as error:
            # What a filesystem without it answers; anything else is said by the plain open too.
            del error
    descriptor = os.open(path, flags)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    return descriptor, False
