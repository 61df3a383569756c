"""The dispatcher's sockets: one to each worker of its view, waited for together, all of one thread."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from orchestrator.dispatch.view import ClusterView, WorkerAddress
from transport.client import WorkerClient
from transport.expert_rows import ExpertRows
from transport.guard import SWEEP_S
from transport.messages import Reply
from transport.sockets import Socket, wait_any

Connect = Callable[[str, WorkerAddress], WorkerClient]
"""(worker name, where it is reached) -> a client for the calling thread."""


class Network(Protocol):
    """What a dispatcher sends by and waits with; tests put a virtual one in its place."""

    def match(self, view: ClusterView) -> None:
        """Reach the workers of this view and no others."""
        ...

    def send(self, worker: int, request_id: int, epoch: int, layer: int, rows: ExpertRows) -> None:
        """Send rows, which must not change until they are answered; raises WorkerLost if no more fit."""
        ...

    def receive(self, worker: int) -> Reply | None:
        """The next answer of a worker, None if there is none; raises WireError for what is none."""
        ...

    def wait(self, wait_s: float) -> Sequence[int]:
        """Workers of whom something has come, or none after `wait_s`."""
        ...

    def pause(self, pause_s: float) -> None:
        """Let time pass."""
        ...

    def reopen(self, worker: int) -> None:
        """Reach a worker over a new connection; what is on its way is lost."""
        ...

    def carried_bytes(self, worker: int) -> int:
        """Bytes that have reached a worker or come from it over its present connection; 0 if unknown."""
        ...

    def close(self) -> None:
        """Drop all connections, and what is on its way."""
        ...


class Connections:
    """A `Network` of ZeroMQ sockets, for the thread that runs the passes."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._clients: dict[int, tuple[WorkerAddress, WorkerClient]] = {}
        # The workers that are waited for and their sockets, in one order.
        self._workers: tuple[int, ...] = ()
        self._sockets: tuple[Socket, ...] = ()
        self._look_due_s = -math.inf

    def match(self, view: ClusterView) -> None:
        wanted = {w: address for w, address in view.addresses.items() if w not in view.absent}
        for worker, (address, client) in list(self._clients.items()):
            if wanted.get(worker) != address:
                del self._clients[worker]
                client.close()
        for worker, address in wanted.items():
            if worker not in self._clients:
                client = self._connect(view.names[worker], address)
                self._clients[worker] = address, client
        self._await()

    def send(self, worker: int, request_id: int, epoch: int, layer: int, rows: ExpertRows) -> None:
        self._clients[worker][1].send_forward(request_id, epoch, layer, rows)

    def receive(self, worker: int) -> Reply | None:
        return self._clients[worker][1].receive()

    def wait(self, wait_s: float) -> list[int]:
        found = [self._workers[place] for place in wait_any(self._sockets, math.ceil(wait_s * 1000))]
        now_s = time.monotonic()
        if now_s >= self._look_due_s:
            self._look_due_s = now_s + SWEEP_S
            for _, client in self._clients.values():
                client.look()
        return found

    def pause(self, pause_s: float) -> None:
        time.sleep(pause_s)

    def reopen(self, worker: int) -> None:
        if worker in self._clients:
            self._clients[worker][1].reopen()
            self._await()

    def carried_bytes(self, worker: int) -> int:
        return self._clients[worker][1].carried_bytes() if worker in self._clients else 0

    def close(self) -> None:
        for _, client in self._clients.values():
            client.close()
        self._clients.clear()
        self._await()

    def _await(self) -> None:
        """Wait for the clients that there are now."""
        self._workers = tuple(self._clients)
        self._sockets = tuple(client.socket for _, client in self._clients.values())
