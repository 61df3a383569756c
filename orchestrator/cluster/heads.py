"""Which runs use a cluster now, so that none moves experts away from another."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from placement.errors import InputError

HEADS = "heads.lock"


class Heads:
    """A run's share of a cluster, from before it reads the plan in use until it ends or is closed.

    Every run holds a shared lock. Whoever is alone can make it an exclusive one for a moment: a run that
    begins just then waits, and reads the plan that is written meanwhile.
    """

    def __init__(self, folder: Path) -> None:
        """`folder`: the cluster's, where the lock is.

        Raises:
            InputError: no file can be written there.
        """
        self._lock = threading.Lock()
        self._is_alone = False
        try:
            self._handle = os.open(folder / HEADS, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise InputError(
                f"{folder / HEADS}: {error.strerror}; expected a folder that this user may write, since runs "
                "on one cluster agree there"
            ) from None
        fcntl.flock(self._handle, fcntl.LOCK_SH)

    @contextmanager
    def held(self) -> Iterator[bool]:
        """Whether this run is the only one; while the block lasts, it stays so."""
        with self._lock:
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._is_alone = True
            except BlockingIOError:
                self._is_alone = False
            try:
                yield self._is_alone
            finally:
                # Also where it was refused: a lock that could not be changed may be gone.
                fcntl.flock(self._handle, fcntl.LOCK_SH)

    def alone(self) -> bool:
        """Whether this run is the only one now. Never waits for a thread that has `held`."""
        if self._lock.locked():
            return self._is_alone
        with self.held() as is_alone:
            return is_alone

    def close(self) -> None:
        """Let others be alone."""
        os.close(self._handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
