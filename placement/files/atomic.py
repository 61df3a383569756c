"""Files that are either the old one or the whole new one, whatever happens while they are written.

A link is followed: what it points to is replaced and the link stays. What is no regular file cannot be
replaced. A device or a pipe is written to once the whole result is there; everything else is refused.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from placement.errors import InputError

StrPath = str | os.PathLike[str]

_MOST_LINKS = 40


def check_targets(targets: Iterable[StrPath | None], inputs: Iterable[StrPath | None] = ()) -> None:
    """Raise InputError where a result could not be written, before the work that makes it.

    Args:
        targets: what a command is to write; None is skipped.
        inputs: what the same command reads. Writing there would destroy it.

    Raises:
        InputError: a target that is a directory, a block device or a socket, in a directory that is missing
            or not writable, named twice, or one of the inputs (through links too).
    """
    read = [(path, found) for path in inputs if path is not None and (found := _stat(path)) is not None]
    written: list[str] = []
    for path in targets:
        if path is None:
            continue
        found = _writable(path)
        if found is not None and not stat.S_ISREG(found.st_mode):
            continue
        for source, source_stat in read:
            if found is not None and os.path.samestat(found, source_stat):
                what = "this command reads it"
                if os.fspath(source) != os.fspath(path):
                    what = f"it is {source}, which this command reads"
                raise InputError(f"cannot write {path}: {what}; give another name")
        real = os.path.realpath(path)
        if real in written:
            raise InputError(f"cannot write {path}: it is named for two results; give each its own name")
        written.append(real)


@contextmanager
def replacing(path: StrPath) -> Iterator[BinaryIO]:
    """Open a temporary file and put it in the place of `path` when the block ends without an error.

    An existing file's permissions stay; a new one gets those that the umask leaves.

    Raises:
        InputError: as `check_targets`, or nobody reads the pipe at `path`.
    """
    found = _writable(path)
    descriptor = _own_descriptor(path)
    if descriptor is not None or (found is not None and not stat.S_ISREG(found.st_mode)):
        with tempfile.TemporaryFile() as file:
            yield file
            file.seek(0)
            _write_through(file, path, descriptor)
        return
    target = Path(os.path.realpath(path))
    # Of fixed length, or it could be too long where the target's own name just fits.
    temporary = target.parent / f".potluck-{secrets.token_hex(8)}"
    try:
        # Not tempfile.mkstemp, whose files are for their owner alone: here the umask decides.
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        _take_place(temporary, target, found, path)
    except BaseException as error:
        # A full disk is not told of by name.
        if isinstance(error, OSError) and error.filename is None:
            error.filename = os.fspath(path)
        temporary.unlink(missing_ok=True)
        raise


def _writable(path: StrPath) -> os.stat_result | None:
    """What is at `path`, None for a new file; raises InputError where nothing can be written."""
    # Unlike Path.is_dir, False for names that no file can have.
    if os.path.isdir(path):
        raise InputError(f"cannot write {path}: it is a directory; expected a file name")
    try:
        found: os.stat_result | None = os.stat(path)
    except FileNotFoundError:
        found = None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
    if _own_descriptor(path) is not None:
        return found
    if found is not None and not stat.S_ISREG(found.st_mode):
        if not (stat.S_ISCHR(found.st_mode) or stat.S_ISFIFO(found.st_mode)):
            kind = "a block device" if stat.S_ISBLK(found.st_mode) else "no regular file"
            raise InputError(f"cannot write {path}: it is {kind}; expected a file name")
        if not os.access(path, os.W_OK):
            raise InputError(f"cannot write {path}: not writable")
        return found
    folder = Path(os.path.realpath(path)).parent
    if not os.access(folder, os.W_OK | os.X_OK):
        reason = "not writable" if folder.is_dir() else "missing"
        raise InputError(f"cannot write {path}: the directory {folder} is {reason}")
    if found is not None and not os.access(path, os.W_OK):
        raise InputError(f"cannot write {path}: the file is read-only")
    return found


def _own_descriptor(path: StrPath) -> int | None:
    """The number of this process's open file that `path` names, as /dev/stdout does; else None.

    Such a name must not be resolved further: what stands behind it may be a file that the shell opened, and
    replacing that file would lose what is printed to it.
    """
    place = os.path.abspath(path)
    for _ in range(_MOST_LINKS):
        folder, name = os.path.split(place)
        folder = os.path.realpath(folder)
        if folder in (f"/proc/{os.getpid()}/fd", "/dev/fd") and name.isdecimal():
            return int(name)
        try:
            place = os.path.join(folder, os.readlink(os.path.join(folder, name)))
        except (OSError, ValueError):
            return None
    return None


def _write_through(file: BinaryIO, path: StrPath, descriptor: int | None) -> None:
    try:
        if descriptor is not None:
            handle = os.dup(descriptor)
        else:
            # Without O_NONBLOCK the open would wait for a pipe's reader.
            handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
            os.set_blocking(handle, True)
        with os.fdopen(handle, "wb") as through:
            shutil.copyfileobj(file, through)
    except OSError as error:
        is_unread = error.filename is not None and stat.S_ISFIFO(os.stat(path).st_mode)
        reason = "nobody reads this pipe; start its reader first" if is_unread else error.strerror
        raise InputError(f"cannot write {path}: {reason}") from error


def _take_place(temporary: Path, target: Path, old: os.stat_result | None, path: StrPath) -> None:
    try:
        if old is not None:
            new = temporary.stat()
            if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
                # Only root may give files away; for others the new file is theirs.
                with suppress(PermissionError):
                    os.chown(temporary, old.st_uid, old.st_gid)
            os.chmod(temporary, stat.S_IMODE(old.st_mode))
        os.replace(temporary, target)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error


def _stat(path: StrPath) -> os.stat_result | None:
    try:
        return os.stat(path)
    except (OSError, ValueError):
        return None
