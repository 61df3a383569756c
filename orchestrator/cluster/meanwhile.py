"""A word now and then while something takes long, so that nobody takes it for dead."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EVERY_S = 10.0


@contextmanager
def told_meanwhile(what: str, tell: Callable[[str], None], every_s: float = EVERY_S) -> Iterator[None]:
    """Tell how long the block has taken, every `every_s` from another thread, until it ends."""
    began_s = time.monotonic()
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(every_s):
            tell(f"{what}: {time.monotonic() - began_s:.0f} s so far")

    thread = threading.Thread(target=watch, name="meanwhile", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
