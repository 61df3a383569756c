"""The head's end of a worker that never ends its message: cut off, and reached again."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import zmq

from transport.client import WorkerClient
from transport.expert_rows import ExpertRows
from transport.messages import ForwardReply, Hello, HelloReply, WireLimits, WorkerState
from transport.pulse_client import Link, PulseClient
from transport.sockets import send_message
from transport.wire import encode

LIMITS = WireLimits("f", frozenset(range(3)), hidden_size=64, num_experts=8, top_k=2)
DEADLINE_S = 30.0
PART = b"\x03" + struct.pack(">Q", 8000) + bytes(8000)


def memory_bytes() -> int:
    resident, shared = map(int, Path("/proc/self/statm").read_text(encoding="ascii").split()[1:3])
    return (resident - shared) * 4096


class EndlessWorker:
    """Speaks ZMTP by hand, and sends parts of one message to whoever connects, until it is cut off."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._socket.getsockname()[1]}"
        self.cuts = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._socket.accept()
                with peer:
                    self._flood(peer)

    @staticmethod
    def _read(peer: socket.socket, size: int) -> None:
        while size:
            size -= len(peer.recv(size))

    def _flood(self, peer: socket.socket) -> None:
        ready = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"ROUTER"
        try:
            peer.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32))
            self._read(peer, 64)
            peer.sendall(bytes([4, len(ready)]) + ready)
            self._read(peer, 2)
            peer.settimeout(DEADLINE_S)
            while True:
                peer.sendall(PART * 16)
                # Threads share this process.
                time.sleep(0.001)
        except OSError:
            self.cuts += 1


@contextmanager
def endless_worker() -> Iterator[EndlessWorker]:
    worker = EndlessWorker()
    try:
        yield worker
    finally:
        worker.close()


def until(reached: Callable[[], bool], do: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not reached():
        assert time.monotonic() < deadline_s
        do()
        time.sleep(0.01)


def test_an_answer_without_an_end_is_cut_off_each_time() -> None:
    with zmq.Context() as context, endless_worker() as worker:
        client = WorkerClient(context, worker.endpoint, LIMITS, name="w")
        before = memory_bytes()
        until(lambda: worker.cuts >= 3, client.look)
        assert client.receive() is None
        assert memory_bytes() - before < 256 << 20
        client.close()


def test_a_pulse_without_an_end_is_cut_off_while_it_is_pinged() -> None:
    with zmq.Context() as context, endless_worker() as worker:
        client = PulseClient(context, worker.endpoint, LIMITS, name="w", session=1)
        seen: list[Link] = []

        def ping() -> None:
            seen.extend(client.links())
            client.ping(1, 0)

        until(lambda: worker.cuts >= 2, ping)
        assert Link.DOWN in seen
        client.close()


def test_bytes_that_a_connection_carries_count_both_ways() -> None:
    values = np.zeros((LIMITS.max_rows, LIMITS.hidden_size), np.int32)
    with zmq.Context() as context:
        server = context.socket(zmq.ROUTER)
        port = server.bind_to_random_port("tcp://127.0.0.1")
        client = WorkerClient(context, f"tcp://127.0.0.1:{port}", LIMITS, name="w")
        client.send(Hello(1, 2))
        peer = server.recv_multipart()[0]
        before = client.carried_bytes()
        reply = ForwardReply(1, values, np.zeros(LIMITS.max_rows, np.bool_), 0.0)
        send_message(server, encode(reply), peer)
        assert isinstance(client.wait(DEADLINE_S), ForwardReply)
        until(lambda: client.carried_bytes() >= before + values.nbytes, lambda: None)
        before = client.carried_bytes()
        rows = ExpertRows(
            np.ones((256, LIMITS.hidden_size), np.float32),
            np.zeros((256, LIMITS.top_k), np.int32),
            np.ones((256, LIMITS.top_k), np.float32),
            np.zeros(256, np.int32),
        )
        client.send_forward(2, 0, 0, rows)
        until(lambda: client.carried_bytes() >= before + rows.hidden.nbytes, lambda: None)
        client.reopen()
        assert client.carried_bytes() < before
        client.close()
        server.close(0)


@pytest.mark.parametrize("fetch", [True, False])
def test_many_large_answers_are_no_endless_one(fetch: bool) -> None:
    values = np.zeros((LIMITS.max_rows, LIMITS.hidden_size), np.int32)
    number = 30
    with zmq.Context() as context:
        server = context.socket(zmq.ROUTER)
        port = server.bind_to_random_port("tcp://127.0.0.1")
        client = WorkerClient(context, f"tcp://127.0.0.1:{port}", LIMITS, name="w")
        client.send(Hello(1, 2))
        peer = server.recv_multipart()[0]
        got = 0

        def take() -> None:
            nonlocal got
            client.look()
            while fetch and isinstance(client.receive(), ForwardReply):
                got += 1

        for i in range(number):
            reply = ForwardReply(i, values, np.zeros(LIMITS.max_rows, np.bool_), 0.0)
            send_message(server, encode(reply), peer)
            take()
            time.sleep(0.03)
        if fetch:
            until(lambda: got == number, take)
        last = HelloReply(9, "w", 1, WorkerState.READY, "f", "", "float32", 1, "")
        send_message(server, encode(last), peer)
        while not isinstance(reply_found := client.wait(DEADLINE_S), HelloReply):
            assert isinstance(reply_found, ForwardReply)
        client.close()
        server.close(0)
