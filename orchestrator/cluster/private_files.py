"""Files that hold secrets: written whole for this user alone, and refused where others could read them."""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from placement.errors import KeyFilesError

_MOST_BYTES = 1_000_000


def make_private_folder(folder: Path) -> None:
    """Make it, and those above it that are missing, for this user alone.

    Raises:
        KeyFilesError: it cannot be made, or is there and open to others.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.mkdir(exist_ok=True, mode=0o700)
    except OSError as error:
        raise KeyFilesError(f"cannot make {folder}: {error.strerror}") from error
    check_private(folder)


def check_private(path: Path) -> None:
    """Raise KeyFilesError unless `path` belongs to this user and no other user may do anything with it."""
    try:
        found = path.stat()
    except OSError as error:
        raise KeyFilesError(f"cannot read {path}: {error.strerror}") from error
    wanted = 0o700 if stat.S_ISDIR(found.st_mode) else 0o600
    if found.st_uid != os.geteuid():
        raise KeyFilesError(f"{path}: expected a file of your own, found one of user {found.st_uid}")
    if found.st_mode & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        raise KeyFilesError(
            f"{path}: other users may use it (mode {mode:04o}), expected {wanted:04o}: run "
            f"`chmod {wanted:o} {path}`, or remove it if somebody could have read it"
        )


def write_private(path: Path, content: bytes) -> None:
    """Put `content` at `path`, whole or not at all, for this user alone.

    Raises:
        KeyFilesError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise KeyFilesError(f"cannot write {path}: {error.strerror}") from error


def read_private(path: Path) -> bytes | None:
    """What a file that no other user may read holds; None where there is none.

    Raises:
        KeyFilesError: others may read it, or it cannot be read.
    """
    if not path.exists():
        return None
    if path.is_dir():
        raise KeyFilesError(f"{path} is a directory, expected a file")
    check_private(path)
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise KeyFilesError(f"cannot read {path}: {error.strerror}") from error
    if len(content) > _MOST_BYTES:
        raise KeyFilesError(f"{path}: expected a key or certificate, found more than {_MOST_BYTES:,} bytes")
    return content


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only process that makes or removes files in a folder; waits for others."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
