"""Slow links on one machine: a network namespace with a token bucket, or a relay that holds bytes back."""

from __future__ import annotations

import argparse
import queue
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

_CHUNK_BYTES = 16 * 1024
# What the bucket lets through at once: little, or small messages would never feel the limit.
_BURST_BYTES = 3200


@contextmanager
def limited_namespace(name: str, subnet: int, mbits_per_s: int) -> Iterator[str | None]:
    """A namespace reached at 10.77.`subnet`.2, both ways limited; None where this user may not make one.

    Yields:
        The address a process in it listens on; start it with `ip netns exec NAME`.
    """
    commands = [
        f"ip netns add {name}",
        f"ip link add {name}h type veth peer name eth0 netns {name}",
        f"ip addr add 10.77.{subnet}.1/24 dev {name}h",
        f"ip link set {name}h up",
        f"ip -n {name} link set lo up",
        f"ip -n {name} addr add 10.77.{subnet}.2/24 dev eth0",
        f"ip -n {name} link set eth0 up",
        f"tc qdisc replace dev {name}h root tbf rate {mbits_per_s}mbit burst {_BURST_BYTES} latency 100ms",
        f"ip netns exec {name} "
        f"tc qdisc replace dev eth0 root tbf rate {mbits_per_s}mbit burst {_BURST_BYTES} latency 100ms",
    ]
    with ExitStack() as stack:
        made = shutil.which("ip") is not None and shutil.which("tc") is not None
        for command in commands if made else ():
            result = subprocess.run(command.split(), capture_output=True, check=False)
            if result.returncode:
                made = False
                break
            if command == commands[0]:
                stack.callback(subprocess.run, ["ip", "netns", "del", name], capture_output=True, check=False)
        yield f"10.77.{subnet}.2" if made else None


@contextmanager
def relay(port: int, *, delay_s: float = 0.0, mbits_per_s: float = 0.0) -> Iterator[int]:
    """A process that passes on what comes for 127.0.0.1:`port`, `delay_s` later each way, at that rate.

    Yields:
        The port it listens on.
    """
    command = [sys.executable, "-m", "benchmarks.fidelity.links", str(port), str(delay_s), str(mbits_per_s)]
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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("delay_s", type=float)
    parser.add_argument("mbits_per_s", type=float)
    args = parser.parse_args()
    server = socket.create_server(("127.0.0.1", 0))
    print(server.getsockname()[1], flush=True)
    while True:
        near, _ = server.accept()
        far = socket.create_connection(("127.0.0.1", args.port))
        for end in (near, far):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        rate = args.mbits_per_s * 1e6 / 8
        for pair in ((near, far), (far, near)):
            threading.Thread(target=_pass_on, args=(*pair, args.delay_s, rate), daemon=True).start()


if __name__ == "__main__":
    main()
