"""Ctrl-C, SIGTERM and SIGHUP: what they do while loading, at work, while Ray starts, and while cleaning up.

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
def stopping_by_exception() -> Iterator[None]:
    """The same for a block, and only for signals that would end the process with no cleaning up at all."""
    before = _handlers()
    _set({number: _raise for number, handler in before.items() if handler == signal.SIG_DFL})
    try:
        yield
    finally:
        _set(before)


@contextmanager
def held_back() -> Iterator[None]:
    """Hold a stop signal back until the block ends; a second one interrupts the block.

    It is for the start of Ray, which an exception would leave half done. Two details follow from what Ray
    does. Ray installs signal handlers that end the process with 1 or 15, so the block keeps anybody from
    changing the handlers. And Ray ends this process at once if its servers die. A closing terminal sends
    SIGHUP to every process, so those started in the block do not receive it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = _handlers()
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        if len(noted) > 1:
            _call(before[noted[0]], noted[0])

    set_handler = signal.signal

    def keep_stop_signals(number: int, handler: Any) -> Any:
        return signal.getsignal(number) if number in before else set_handler(number, handler)

    _set(dict.fromkeys(before, note))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    # Ray does the same to defer Ctrl-C.
    signal.signal = keep_stop_signals  # type: ignore[assignment]
    try:
        yield
    except Exception:
        # Where the whole group was told to stop, the start fails for that reason.
        if not noted:
            raise
    finally:
        signal.signal = set_handler
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        _set(before)
    if noted:
        _call(before[noted[0]], noted[0])


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


def _call(handler: Any, number: int) -> None:
    if callable(handler):
        handler(number, None)
    else:
        os.kill(os.getpid(), number)


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)


def _raise(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
