"""Servers in processes of their own, on loopback."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from placement.errors import PotluckError

_START_S = 300.0
_END_S = 60.0
_WORKER = "workers.serve"
_URL = re.compile(r"http://([0-9.]+):(\d+)")


class ServerDidNotStart(PotluckError):
    """A server ended, or said nothing for long; the message has its last lines."""


@dataclass(frozen=True, slots=True)
class Server:
    """One that listens at `address`; what runs under `process` is its own."""

    address: tuple[str, int]
    process: psutil.Process

    def rss_bytes(self) -> int:
        """Of its first process."""
        return int(self.process.memory_info().rss)

    def workers(self) -> list[psutil.Process]:
        """Its worker processes that run now."""
        found = []
        for child in self.process.children(recursive=True):
            with suppress(psutil.Error):
                if any(_WORKER in part for part in child.cmdline()) and child.status() != "zombie":
                    found.append(child)
        return found


@contextmanager
def potluck(model: Path, options: Sequence[str] = (), steps: Path | None = None) -> Iterator[Server]:
    """`potluck serve` on a free port.

    Args:
        options: more of them.
        steps: takes a line for each step, see `benchmarks.serving.recording`.

    Raises:
        ServerDidNotStart: it ended.
    """
    command = [sys.executable, "-m", "benchmarks.serving.recording", str(steps or "-")]
    command += ["serve", "--model", str(model), "--port", "0", *options]
    with _running(command) as (process, log):
        yield Server(_address(process, log), psutil.Process(process.pid))


@contextmanager
def llamacpp(program: Path, model: Path, *, users: int, context: int, threads: int) -> Iterator[Server]:
    """llama.cpp's server with so many slots of so many tokens.

    Raises:
        ServerDidNotStart: it ended.
    """
    port = _free_port()
    command = [str(program), "-m", str(model), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--parallel", str(users), "-c", str(users * context), "-t", str(threads), "-tb", str(threads)]
    command += ["--no-webui", "--jinja", "-ngl", "0"]
    with _running(command) as (process, log):
        address = ("127.0.0.1", port)
        _wait_healthy(process, address, log)
        yield Server(address, psutil.Process(process.pid))


@contextmanager
def _running(command: Sequence[str]) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    with tempfile.TemporaryDirectory(prefix="potluck-serving-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        try:
            yield process, log
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> tuple[str, int]:
    until = time.monotonic() + _START_S
    while time.monotonic() < until and process.poll() is None:
        found = _URL.search(log.read_text(errors="replace"))
        if found:
            return found[1], int(found[2])
        time.sleep(0.05)
    raise ServerDidNotStart(_last(log))


def _wait_healthy(process: subprocess.Popen[bytes], address: tuple[str, int], log: Path) -> None:
    url = f"http://{address[0]}:{address[1]}/health"
    until = time.monotonic() + _START_S
    while time.monotonic() < until and process.poll() is None:
        with suppress(OSError, ValueError), urllib.request.urlopen(url, timeout=2) as answer:
            if json.load(answer).get("status") == "ok":
                return
        time.sleep(0.1)
    raise ServerDidNotStart(_last(log))


def _last(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return "the server did not start: " + " | ".join(lines[-3:])


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
