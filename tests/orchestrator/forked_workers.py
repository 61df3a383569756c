"""Worker processes that are forked from one that has torch in memory already, which takes seconds each time.

Tests about how a worker process is started start it as the program does; others need not wait for it.
"""

from __future__ import annotations

import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NoReturn

from orchestrator.launch.python import ROOT, python_command, python_environment
from workers.spec import WorkerSpec

Spawn = Callable[..., Any]
"""As `orchestrator.launch.spawn.spawn`."""


class Forked:
    """What `subprocess.Popen` offers of a process that is nobody's child here."""

    def __init__(self, pid: int, stdin: IO[str], stdout: IO[str]) -> None:
        self.pid, self.stdin, self.stdout = pid, stdin, stdout
        self._handle: int | None = None
        with suppress(ProcessLookupError):
            self._handle = os.pidfd_open(pid)

    def kill(self) -> None:
        if self._handle is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    def wait(self) -> None:
        if self._handle is not None:
            select.select([self._handle], [], [])

    def __del__(self) -> None:
        if self._handle is not None:
            os.close(self._handle)


class Forks:
    """The process that is forked; it ends with this one.

    Attributes:
        pids: of all that were forked so far.
    """

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                python_command(__name__), env=python_environment(), cwd=ROOT, stdin=theirs.fileno()
            )
        self._control = ours
        self.pids: list[int] = []
        self._lock = threading.Lock()

    def close(self) -> None:
        self._control.close()
        self._process.wait()

    def spawn(
        self,
        spec: WorkerSpec,
        *,
        module: str = "workers.serve",
        environment: Mapping[str, str] | None = None,
    ) -> Forked:
        """As `orchestrator.launch.spawn.spawn`, of any module and with more in its environment."""
        stdin, ours_in = os.pipe()
        ours_out, stdout = os.pipe()
        stderr = os.open(os.devnull, os.O_WRONLY)
        pid = self._fork(module, {**os.environ, **(environment or {})}, (stdin, stdout, stderr))
        made = Forked(pid, os.fdopen(ours_in, "w"), os.fdopen(ours_out))
        with suppress(OSError):
            made.stdin.write(spec.to_json() + "\n")
            made.stdin.flush()
        return made

    def start_detached(self, arguments: Sequence[str], *, given: str, output: Path, log: Path) -> int:
        """As `orchestrator.launch.detached.start_detached`, of a module without arguments."""
        _, module = arguments
        stdin, ours = os.pipe()
        stdout = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        stderr = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        pid = self._fork(module, os.environ, (stdin, stdout, stderr))
        with os.fdopen(ours, "w") as pipe:
            pipe.write(given)
        return pid

    def _fork(self, module: str, environment: Mapping[str, str], files: tuple[int, int, int]) -> int:
        asked = {"module": module, "environment": dict(environment)}
        with self._lock:
            socket.send_fds(self._control, [json.dumps(asked).encode()], files)
            pid = int(self._control.recv(64))
            self.pids.append(pid)
        for file in files:
            os.close(file)
        return pid


@contextmanager
def forks() -> Iterator[Forks]:
    """One process to fork from."""
    made = Forks()
    try:
        yield made
    finally:
        made.close()


def main() -> None:
    """Fork whenever asked, until nobody can ask any more."""
    # All that a worker imports once it has its spec.
    import torch  # noqa: F401

    import workers.formats.identity
    import workers.formats.open_model
    import workers.holdings
    import workers.paced
    import workers.pool
    import workers.pulse
    import workers.serve
    import workers.service
    import workers.sessions  # noqa: F401

    control = socket.socket(fileno=os.dup(0))
    # The system then takes note of their ends by itself.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        asked, files, _, _ = socket.recv_fds(control, 2**20, 3)
        if not asked:
            return
        pid = os.fork()
        if pid == 0:
            control.close()
            _become(json.loads(asked), *files)
        for file in files:
            os.close(file)
        control.send(str(pid).encode())


def _become(asked: dict[str, Any], *files: int) -> NoReturn:
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w")
        os.environ.clear()
        os.environ.update(asked["environment"])
        runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)
    finally:
        os._exit(1)


if __name__ == "__main__":
    main()
