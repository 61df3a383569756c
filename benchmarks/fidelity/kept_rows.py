"""Rows of a long benchmark: in a file as soon as they are measured, so that an ended run is gone on with.

A block that an end from outside, or its own time, ends tidily is here too.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from placement.files.atomic import replacing


class KeptRows:
    """JSON documents by key, in a file where there is one; what it has already stays until measured again."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        exists = path is not None and path.exists()
        self._rows: dict[str, Any] = json.loads(path.read_text()) if path is not None and exists else {}

    @property
    def rows(self) -> Mapping[str, Any]:
        return self._rows

    def keep(self, key: str, row: object) -> None:
        """Write it now."""
        self._rows[key] = row
        if self._path is not None:
            with replacing(self._path) as file:
                file.write((json.dumps(self._rows, indent=1) + "\n").encode())


@contextmanager
def ended_tidily() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind the block, so that what it started ends with it."""

    def unwind(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, unwind) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block, which the main thread runs, once it has taken so long."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"not done in {seconds:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
