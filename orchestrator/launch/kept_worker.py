"""A box's worker process: started, found again where it runs already, started again when it dies.

All that is known of it lies in a folder, so that whoever keeps it may die too. Files there:

    order.json    what it is to be, and the pair it proves itself with; there as long as it is wanted
    process.json  the process that was started last, and from which order
    events        what that process says of itself, a line of JSON each
    worker.log    its messages
    lock          held as long as somebody keeps it
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from orchestrator.launch.detached import start_detached
from orchestrator.launch.pause import RestartPause
from orchestrator.launch.processes import end_process, find_process, is_running
from orchestrator.launch.spawn import why_died
from placement.errors import PotluckError, WorkerStartError
from placement.files.json_file import parse_json, read_json
from transport.keys import KeyPair
from workers.spec import WorkerInfo, WorkerSpec

ORDER, PROCESS, EVENTS, LOG, LOCK = "order.json", "process.json", "events", "worker.log", "lock"
TICK_S = 0.2
_MOST_LINES = 1_000
_MOST_BYTES = 10_000_000


OVER = frozenset({"failed", "died", "ended", "none"})
"""States of a worker that is being started, after which it does not become ready."""


@dataclass(frozen=True, slots=True)
class KeptState:
    """How a kept worker is.

    Attributes:
        state: "starting", "ready", "failed" (it told why), "died" (without a word: it is started again),
            "ended" (it will not be started again) or "none".
        since: when that began, in seconds since 1970.
        starts: of processes, since whoever keeps it began to.
        message: why it failed, or its last word.
    """

    state: str = "none"
    since: float = 0.0
    pid: int = 0
    starts: int = 0
    message: str = ""
    info: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class KeptWorker:
    """The worker of one folder."""

    def __init__(self, folder: Path) -> None:
        """Take on what the folder says is wanted, if anything."""
        self._folder = folder
        # It goes with this process, however that ends.
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(handle, fcntl.LOCK_SH)
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._awake = threading.Event()
        self._thread: threading.Thread | None = None
        self._starts = 0
        self._state = KeptState()
        order = _order(folder)
        if order is not None:
            self._begin(order.spec)

    def keep(self, spec: WorkerSpec) -> None:
        """Have this worker run from now on; one that runs by the same order goes on as it is.

        So does one that died and is about to be started again: that is done here and by nobody else. Only one
        that told why it failed is ended and started anew, since what kept it from loading may be mended.

        A pair of keys is made where others are let in and the spec has none. Ports are chosen once.
        """
        with self._lock:
            wanted = _digest(spec)
            before = _order(self._folder)
            if before is not None and before.wanted == wanted and self._thread is not None:
                if self._state.state == "died":
                    self._state = KeptState("starting", time.time(), starts=self._starts)
                    self._awake.set()
                if self._state.state != "failed":
                    return
                if any(event["event"] == "bound" for event in events(self._folder)):
                    spec = before.spec
        self.stop()
        if spec.keys is None and spec.allowed:
            spec = replace(spec, keys=KeyPair.make())
        with self._lock:
            spec = replace(spec, log_path=str(self._folder / LOG))
            self._note_order(spec, wanted)
            self._ending.clear()
            self._awake.clear()
        self._begin(spec)

    def state(self) -> KeptState:
        return self._state

    def stop(self) -> None:
        """End it, and do not start it again. Harmless where there is none."""
        (self._folder / ORDER).unlink(missing_ok=True)
        self._ending.set()
        self._awake.set()
        process = running_process(self._folder)
        if process is not None:
            end_process(process)
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        (self._folder / PROCESS).unlink(missing_ok=True)
        self._state = KeptState()

    def _begin(self, spec: WorkerSpec) -> None:
        self._state = KeptState("starting", time.time())
        self._thread = threading.Thread(
            target=self._watch, args=(spec,), name=f"keeps-{spec.name}", daemon=True
        )
        self._thread.start()

    def _watch(self, spec: WorkerSpec) -> None:
        pause = RestartPause()
        # Who ends a cluster takes the order away first.
        while not self._ending.is_set() and (self._folder / ORDER).exists():
            began_s = time.monotonic()
            try:
                process = running_process(self._folder) or self._start(spec)
                spec = self._listen(spec, process)
            except (PotluckError, OSError) as error:
                # A full disk passes: it is tried again.
                self._tell("failed", message=str(error))
            if self._ending.is_set():
                return
            if self._state.state == "ended":
                return
            self._awake.wait(pause.after_s(time.monotonic() - began_s))
            if self._ending.is_set():
                return
            self._awake.clear()

    def _start(self, spec: WorkerSpec) -> psutil.Process:
        self._starts += 1
        pid = start_detached(
            ["-m", "workers.serve"],
            given=spec.to_json() + "\n",
            output=self._folder / EVENTS,
            log=self._folder / LOG,
        )
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            try:
                _write(self._folder / PROCESS, {"pid": pid, "began": process.create_time()})
            except OSError:
                # Nobody would find it again.
                end_process(process)
                raise
            return process
        raise PotluckError(why_died(spec))

    def _listen(self, spec: WorkerSpec, process: psutil.Process) -> WorkerSpec:
        """Until the process is gone; the spec with the ports that it chose."""
        while True:
            still_runs = is_running(process)
            # Until the first one, why the process before it is gone stays told.
            last: dict[str, Any] = next(reversed(events(self._folder)), {"event": "none"})
            if last["event"] == "bound":
                self._tell("starting", pid=process.pid)
            elif last["event"] == "ready":
                info = WorkerInfo.from_dict(last["info"])
                spec = self._note_ports(spec, info)
                # Whoever keeps it now may have found it serving.
                since = (self._folder / EVENTS).stat().st_mtime
                self._tell("ready", pid=process.pid, info=last["info"], since=since)
            elif last["event"] == "failed":
                self._tell("failed", pid=process.pid, message=last["message"])
            elif last["event"] == "ended":
                # Nobody spoke to it for long, or somebody told it to end: it is not wanted any more.
                (self._folder / ORDER).unlink(missing_ok=True)
                self._tell("ended", message=last["message"])
                return spec
            if not still_runs:
                break
            if self._ending.wait(TICK_S):
                return spec
        if last["event"] != "failed":
            self._tell("died", message=why_died(spec))
        return spec

    def _note_ports(self, spec: WorkerSpec, info: WorkerInfo) -> WorkerSpec:
        """The next process is to be found where this one is."""
        found = replace(spec, endpoint=info.endpoint, pulse_endpoint=info.pulse_endpoint)
        if found != spec:
            with self._lock:
                order = _order(self._folder)
                if order is not None:
                    self._note_order(found, order.wanted)
        return found

    def _note_order(self, spec: WorkerSpec, wanted: str) -> None:
        _write(self._folder / ORDER, {"wanted": wanted, "spec": json.loads(spec.to_json())})

    def _tell(
        self,
        state: str,
        *,
        pid: int = 0,
        message: str = "",
        info: Mapping[str, Any] | None = None,
        since: float | None = None,
    ) -> None:
        before = self._state
        same = before.state == state and before.pid == pid
        self._state = KeptState(
            state, before.since if same else since or time.time(), pid, self._starts, message, info
        )


def running_process(folder: Path) -> psutil.Process | None:
    """The worker process that was started last in a folder, None where it has ended."""
    noted = _read(folder / PROCESS) or {}
    return find_process(noted.get("pid"), noted.get("began"))


def events(folder: Path) -> list[dict[str, Any]]:
    """What the process of a folder has said of itself so far."""
    try:
        with (folder / EVENTS).open("rb") as file:
            lines = file.read(_MOST_BYTES).splitlines()[:_MOST_LINES]
    except OSError:
        return []
    found = []
    for line in lines:
        # The last one may be half written.
        with suppress(PotluckError):
            event = parse_json(line.decode(errors="replace"), PotluckError, EVENTS, "an event")
            if isinstance(event, dict) and _is_whole(event):
                found.append(event)
    return found


def _is_whole(event: Mapping[str, Any]) -> bool:
    """Whether an event has what those of its kind have."""
    kind = event.get("event")
    if kind in ("failed", "ended"):
        return isinstance(event.get("message"), str)
    return isinstance(kind, str) and (kind != "ready" or isinstance(event.get("info"), dict))


@dataclass(frozen=True, slots=True)
class _Order:
    """What a worker is to be, and the digest of what was asked for."""

    wanted: str
    spec: WorkerSpec


def _order(folder: Path) -> _Order | None:
    """None where no worker is wanted, or what is noted is damaged or of another release."""
    noted = _read(folder / ORDER) or {}
    try:
        return _Order(str(noted.get("wanted")), WorkerSpec.from_json(json.dumps(noted.get("spec"))))
    except WorkerStartError:
        return None


def _digest(spec: WorkerSpec) -> str:
    """Of what is asked for."""
    return hashlib.sha256(spec.to_json().encode()).hexdigest()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = read_json(path, PotluckError, "what was noted of a worker", most_bytes=_MOST_BYTES)
    except PotluckError:
        return None
    return found if isinstance(found, dict) else None


def _write(path: Path, document: Mapping[str, Any]) -> None:
    """Whole or not at all, for this user alone."""
    temporary = path.with_suffix(".new")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(document, file)
    os.replace(temporary, path)
