"""Ctrl-C, SIGTERM and SIGHUP: what they do while loading, at work, and while cleaning up.

It imports next to nothing, because it has to be in force before anything slow is loaded.
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager

# Loading `typing` to ask it would take as long as all the rest of this module.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import FrameType
    from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def stop_at_once() -> None:
    """From now on a stop signal ends the process without a word, with exit code 128 + its number.

    For when there is nothing to clean up. An exception would not do: libraries catch it while they are
    imported, and the interpreter prints it while it exits.
    """
    _install(_end)


def stop_by_exception() -> None:
    """From now on a stop signal raises SystemExit, so that every `with` on the way out cleans up."""
    _install(_raise)


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """End so for a block that loads libraries, where `stop_by_exception` is in force."""
    before = _handlers()
    _set({number: _end for number, handler in before.items() if handler is _raise})
    try:
        yield
    finally:
        _set(before)


@contextmanager
def stopping_by_exception() -> Iterator[None]:
    """The same for a block, and only for signals that would end the process with no cleaning up at all."""
    before = _handlers()
    _set({number: _raise for number, handler in before.items() if handler == signal.SIG_DFL})
    try:
        yield
    finally:
        _set(before)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignore stop signals for a few seconds of cleaning up."""
    before = _handlers()
    _set(dict.fromkeys(before, signal.SIG_IGN))
    try:
        yield
    finally:
        _set(before)


def _install(handler: Callable[[int, FrameType | None], Any]) -> None:
    """Signals that are ignored stay so: `nohup`, and background jobs of a shell."""
    _set(dict.fromkeys(_handlers(), handler))


def _handlers() -> dict[int, Any]:
    """What Python does for each stop signal that is not ignored; nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    found = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    return {number: handler for number, handler in found.items() if handler not in (signal.SIG_IGN, None)}


def _set(handlers: Mapping[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)


def _raise(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
