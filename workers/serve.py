"""A worker process, `python -m workers.serve`: its spec as one line on standard input, events on its output.

It ends by itself when its starter does (`lifeline`), when no head speaks to it for long (`linger_s`), on
SIGTERM, and when a head says so.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

from placement.errors import PotluckError
from placement.files.quote import first_line
from workers.log_file import log_to
from workers.process import WorkerProcess
from workers.spec import WorkerSpec

log = logging.getLogger(__name__)

TICK_S = 0.25
# The experts' pages are looked at so often, but for at most this share of the time.
LOOK_S = 5.0
LOOK_SHARE = 0.02
# Threads end within this, or the process ends without them.
STOP_TIMEOUT_S = 3.0


def main() -> int:
    """Serve until told to end; the exit code is 0, or 2 where the worker could not begin."""
    ending = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ending.set()

    signal.signal(signal.SIGTERM, end)
    # A closing terminal and Ctrl-C are the starter's to act on.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        spec = WorkerSpec.from_json(sys.stdin.readline())
    except PotluckError as error:
        return _failed(error)
    if spec.lifeline:
        threading.Thread(target=_end_with_starter, name="lifeline", daemon=True).start()
    if spec.log_path:
        log_to(spec.log_path)
    worker = WorkerProcess(spec)
    code = 0
    try:
        _tell({"event": "bound", **worker.bind().to_dict()})
    except Exception as error:
        return _failed(error)
    try:
        info = worker.load()
        log.info("worker %s: serves %d experts", info.name, info.num_experts)
        _tell({"event": "ready", "info": info.to_dict()})
    except Exception as error:
        # It stays, and holds nothing: heads that ask are told why.
        code = _failed(error)
    # What knows files of models takes a while to load, and is loaded by now.
    from workers.formats.digesting import DigestsBehind

    with DigestsBehind(Path(spec.model_dir)) if code == 0 else nullcontext():
        _serve(worker, spec, ending)
    return code


def _tell(event: dict[str, Any]) -> None:
    """One line; a starter that does not read any more is no reason to end."""
    try:
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()
    except OSError:
        pass


def _failed(error: Exception) -> int:
    if isinstance(error, PotluckError):
        message = first_line(error)
    else:
        log.exception("the worker could not begin")
        message = f"{type(error).__name__}: {first_line(error)}"
    _tell({"event": "failed", "message": message})
    return 2


def _end_with_starter() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(0)


def _serve(worker: WorkerProcess, spec: WorkerSpec, ending: threading.Event) -> None:
    """Until told to end, or until no head has spoken for `linger_s`."""
    why = "told to end"
    silence = Silence(worker.times_heard)
    look_s = time.monotonic()
    while not ending.wait(TICK_S) and not worker.told_to_end.is_set():
        now_s = time.monotonic()
        if silence.lasts_s(worker.times_heard, now_s) >= spec.linger_s:
            why = f"no head has spoken for {spec.linger_s:g} s: it ends"
            break
        if now_s >= look_s:
            worker.look_at_memory()
            took_s = time.monotonic() - now_s
            look_s = now_s + max(LOOK_S, took_s / LOOK_SHARE)
    log.info("worker %s: %s", spec.name, why)
    # Whoever keeps this worker would start one that died again.
    _tell({"event": "ended", "message": why})
    # Whoever waits for the end does not wait for a request of minutes.
    threading.Timer(STOP_TIMEOUT_S, os._exit, [0]).start()
    worker.stop()


class Silence:
    """For how long no head has spoken, while this process was listening."""

    def __init__(self, times_heard: int, now_s: float | None = None) -> None:
        self._times_heard = times_heard
        self._last_s = time.monotonic() if now_s is None else now_s
        self._lasts_s = 0.0

    def lasts_s(self, times_heard: int, now_s: float) -> float:
        """As of now; to be asked every `TICK_S`. What the process itself was stopped for counts little."""
        self._lasts_s += min(now_s - self._last_s, 4 * TICK_S)
        self._last_s = now_s
        if times_heard != self._times_heard:
            self._times_heard, self._lasts_s = times_heard, 0.0
        return self._lasts_s


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    # Threads of libraries, and a request that is still computed, are no reason to stay.
    os._exit(code)
