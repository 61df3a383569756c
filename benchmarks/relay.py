"""A relay that holds bytes back: a long or slow link on one machine, where the system has no netem."""

from __future__ import annotations

import argparse
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_CHUNK_BYTES = 16 * 1024


@contextmanager
def relay(
    port: int, *, host: str = "127.0.0.1", delay_s: float = 0.0, mbits_per_s: float = 0.0
) -> Iterator[int]:
    """A process that passes on what comes for `host`:`port`, `delay_s` later each way, at that rate.

    Yields:
        The port of 127.0.0.1 that it listens on.
    """
    arguments = [host, str(port), str(delay_s), str(mbits_per_s)]
    command = [sys.executable, "-m", "benchmarks.relay", *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        if process.stdout is None:
            raise RuntimeError("the relay has no output")
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


def _pass_on(source: socket.socket, sink: socket.socket, delay_s: float, bytes_per_s: float) -> None:
    """One direction: a thread reads, this one writes when each chunk is due."""
    chunks: queue.Queue[tuple[float, bytes]] = queue.Queue()

    def read() -> None:
        free_s = 0.0
        while True:
            try:
                data = source.recv(_CHUNK_BYTES)
            except OSError:
                data = b""
            now = time.monotonic()
            free_s = max(now, free_s) + (len(data) / bytes_per_s if bytes_per_s else 0.0)
            chunks.put((free_s + delay_s, data))
            if not data:
                return

    threading.Thread(target=read, daemon=True).start()
    while True:
        due_s, data = chunks.get()
        time.sleep(max(0.0, due_s - time.monotonic()))
        if not data:
            with suppress(OSError):
                sink.shutdown(socket.SHUT_WR)
            return
        try:
            sink.sendall(data)
        except OSError:
            return


def _end_with_input() -> None:
    """Whoever started this has ended, however it did."""
    sys.stdin.read()
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("delay_s", type=float)
    parser.add_argument("mbits_per_s", type=float)
    args = parser.parse_args()
    threading.Thread(target=_end_with_input, daemon=True).start()
    server = socket.create_server(("127.0.0.1", 0))
    print(server.getsockname()[1], flush=True)
    while True:
        near, _ = server.accept()
        far = socket.create_connection((args.host, args.port))
        for end in (near, far):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        rate = args.mbits_per_s * 1e6 / 8
        for pair in ((near, far), (far, near)):
            threading.Thread(target=_pass_on, args=(*pair, args.delay_s, rate), daemon=True).start()


if __name__ == "__main__":
    main()
