"""Files that are either the old one or the whole new one, whatever happens while they are written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from placement.errors import InputError


def check_target(path: str | os.PathLike[str]) -> None:
    """Raise InputError where no file can be written, before the work whose result is to stand there."""
    target = Path(path)
    # Unlike Path.is_dir, False for names that no file can have.
    if os.path.isdir(target):
        raise InputError(f"cannot write {path}: it is a directory; expected a file name")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        reason = "not writable" if target.parent.is_dir() else "missing"
        raise InputError(f"cannot write {path}: the directory {target.parent} is {reason}")


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` and rename it onto `path` when the block ends without an error.

    Raises:
        InputError: the directory is missing or not writable, or `path` is a directory.
    """
    target = Path(path)
    check_target(target)
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
