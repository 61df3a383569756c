"""A temporary folder for a run. If the process is killed, the next run removes what it left."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from orchestrator.stopping import uninterrupted

PREFIX = "potluck-"
LOCK = "owner.lock"
# Sockets lie below it, in paths of up to 70 characters for Ray's, and may have 107.
MAX_TEMP_DIR_CHARS = 32


@contextmanager
def run_folder(parent: str) -> Iterator[Path]:
    """Make a folder of this user alone below `parent`, and remove it at the end.

    A lock file in it stays locked as long as this process lives. So a folder that nobody locks was left by a
    process that was killed, and it is removed before the new one is made.
    """
    remove_abandoned(parent)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    lock = None
    try:
        lock = _locked(folder)
        yield folder
    finally:
        with uninterrupted():
            shutil.rmtree(folder, ignore_errors=True)
            if lock is not None:
                os.close(lock)


def short_temp_dir() -> str:
    """The user's folder for temporary files, or /tmp where sockets would not fit below that one."""
    default = tempfile.gettempdir()
    return default if len(default) <= MAX_TEMP_DIR_CHARS else "/tmp"


def remove_abandoned(parent: str) -> None:
    """Remove this user's run folders below `parent` whose process has ended; leave everything else alone."""
    try:
        entries = list(os.scandir(parent))
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith(PREFIX) and entry.is_dir(follow_symlinks=False):
            with suppress(OSError):
                _remove_if_abandoned(Path(entry.path))


def _locked(folder: Path) -> int:
    """The open lock file; it gets its name when it is locked, so nobody finds it unlocked meanwhile."""
    new = folder / f"{LOCK}.new"
    lock = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    new.rename(folder / LOCK)
    return lock


def _remove_if_abandoned(folder: Path) -> None:
    if folder.lstat().st_uid != os.geteuid():
        return
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(lock).st_mode):
            return
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The lock file goes last: Ray's last processes may still write, and then the next start tries again.
        for entry in os.scandir(folder):
            if entry.name == LOCK:
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)
        if os.listdir(folder) == [LOCK]:
            os.unlink(folder / LOCK)
            folder.rmdir()
    finally:
        os.close(lock)
