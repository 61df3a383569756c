"""Makes a model's digests behind everything else, while somebody runs it who has none.

`python -m workers.formats.digesting MODEL` does it, and ends when its standard input does.
"""

from __future__ import annotations

import _thread
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from placement.errors import InputError, PotluckError
from workers.formats.digests import Digests, known_digests, make_digests, places, write_digests

AFTER_S = 60.0
"""What runs for less is not worth it, and its disk may be busy with loading."""
_END_S = 5.0
_ROOT = Path(__file__).resolve().parents[2]


class DigestsBehind:
    """A context in which a model's digests are made, if there are none, at the lowest priority.

    It begins when the context has lasted for a while, and ends with it, and with this process, however that
    ends. What was read by then is kept, and the next one goes on from there.
    """

    def __init__(self, model: Path, after_s: float = AFTER_S) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._is_over = False
        self._process: subprocess.Popen[bytes] | None = None
        self._timer = threading.Timer(after_s, self._make)
        self._timer.name, self._timer.daemon = "digests", True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        with self._lock:
            self._is_over = True
            process = self._process
        if process is not None and process.stdin is not None:
            with suppress(OSError):
                process.stdin.close()
        self._timer.join(2 * _END_S)

    def _make(self) -> None:
        if not are_wanted(self._model):
            return
        path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH", ""))))
        with self._lock, suppress(OSError):
            if not self._is_over:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "workers.formats.digesting", str(self._model.absolute())],
                    env={**os.environ, "PYTHONPATH": path},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
        if self._process is not None:
            self._process.wait()


def are_wanted(model: Path) -> bool:
    """Whether a model has no digests yet, or not all of them."""
    try:
        known = known_digests(model)
    except (PotluckError, OSError):
        # Damaged ones may still tell somebody something.
        return False
    return known is None or not known[1].complete


def own_digests(model: Path) -> tuple[Path, Digests | None]:
    """Where the model's own digests lie or will lie, and what there is of them.

    Raises:
        InputError: neither of their places can be written.
        CheckpointError: there are some, but damaged.
    """
    known = known_digests(model)
    if known is not None:
        return known
    beside, cached = places(model)
    if os.access(beside.parent, os.W_OK | os.X_OK):
        return beside, None
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot write {beside}, and not {cached.parent} either: {error.strerror}; expected one of the "
            "two to be writable"
        ) from None
    return cached, None


def give_way() -> None:
    """To everything else on this machine: nobody waits for this process."""
    os.nice(19)
    # Some kernels and containers have no such classes.
    with suppress(psutil.Error, OSError, AttributeError):
        psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)


@contextmanager
def only_one(model: Path) -> Iterator[bool]:
    """Whether no other process of this user makes this model's digests, while the block lasts."""
    lock = places(model)[1].with_suffix(".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(handle)


def make_missing(model: Path) -> None:
    """Make what is missing of a model's digests, unless another process does."""
    with only_one(model) as is_alone:
        if is_alone and are_wanted(model):
            path, known = own_digests(model)
            make_digests(model, known, lambda digests: write_digests(digests, path))


def _end_with_starter() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    # What was read so far is written first.
    _thread.interrupt_main()
    threading.Event().wait(_END_S)
    os._exit(1)


def main() -> None:
    """Make the digests of the model that the command line names."""
    give_way()
    # Not even its share of a processor that others want.
    with suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    try:
        threading.Thread(target=_end_with_starter, name="lifeline", daemon=True).start()
        make_missing(Path(sys.argv[1]))
    except (PotluckError, OSError, KeyboardInterrupt):
        # Nobody asked for them; `potluck verify` says what is wrong.
        sys.exit(1)


if __name__ == "__main__":
    main()
