"""Processes that are forked from one that has torch in memory already, which takes seconds each time.

Tests about how a process is started start it as the program does; others need not wait for it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from orchestrator.launch.python import ROOT, python_command, python_environment
from tests.forks import client
from workers.spec import WorkerSpec

SOCKET_VARIABLE = "POTLUCK_TEST_FORKS"
"""Environment variable that names the server's socket to the processes that share the tests."""

Spawn = Callable[..., Any]
"""As `orchestrator.launch.spawn.spawn`."""


class Forked:
    """What `subprocess.Popen` offers, of a process that is nobody's child here."""

    def __init__(self, connection: socket.socket, stdin: IO[str], stdout: IO[str]) -> None:
        self.stdin, self.stdout = stdin, stdout
        self.returncode: int | None = None
        self._connection = connection
        self.pid: int = self._said()["pid"]

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout_s: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout_s)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout_s or 0.0)
            # Where the server is gone, so is the process.
            self.returncode = self._said().get("status", -signal.SIGKILL)
            self._connection.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(OSError):
                self._connection.send(str(int(number)).encode())

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in (self.stdin, self.stdout):
            with suppress(OSError):
                pipe.close()
        self.wait()

    def _said(self) -> dict[str, int]:
        try:
            message = self._connection.recv(100)
        except ConnectionResetError:
            # The server ended the connection with a signal unread. What it said before that comes next.
            message = self._connection.recv(100)
        said: dict[str, int] = json.loads(message or "{}")
        return said


class Forks:
    """Asks for processes.

    Attributes:
        pids: of all that were forked so far.
    """

    def __init__(self, where: str) -> None:
        """`where`: the server's socket."""
        self._where = where
        self.pids: list[int] = []

    def command(self, arguments: Sequence[str]) -> list[str]:
        """Runs as `python ARGUMENTS` does, to whoever starts it."""
        return [sys.executable, "-I", "-S", client.__file__, self._where, *arguments]

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
        connection = self._ask(["-m", module], {**os.environ, **(environment or {})}, (stdin, stdout, stderr))
        made = Forked(connection, os.fdopen(ours_in, "w"), os.fdopen(ours_out))
        self.pids.append(made.pid)
        with suppress(OSError):
            made.stdin.write(spec.to_json() + "\n")
            made.stdin.flush()
        return made

    def start_detached(self, arguments: Sequence[str], *, given: str, output: Path, log: Path) -> int:
        """As `orchestrator.launch.detached.start_detached`."""
        stdin, ours = os.pipe()
        stdout = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        stderr = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with self._ask(arguments, os.environ, (stdin, stdout, stderr)) as connection:
            pid: int = json.loads(connection.recv(100))["pid"]
        with os.fdopen(ours, "w") as pipe:
            pipe.write(given)
        self.pids.append(pid)
        return pid

    def _ask(
        self, arguments: Sequence[str], environment: Mapping[str, str], files: tuple[int, int, int]
    ) -> socket.socket:
        asked = {
            "arguments": list(arguments),
            "environment": dict(environment),
            "folder": str(ROOT),
            "new_session": True,
            "ends_with_asker": False,
        }
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(self._where)
        socket.send_fds(connection, [json.dumps(asked).encode()], files)
        for file in files:
            os.close(file)
        return connection


@contextmanager
def server() -> Iterator[str]:
    """The one process to fork from; gives its socket."""
    with TemporaryDirectory(prefix="forks-") as folder:
        where = f"{folder}/socket"
        process = subprocess.Popen(
            python_command("tests.forks.server", where),
            env=python_environment(),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield where
            # Its standard input is closed with the block.
