"""Mutated messages at a live worker, while an honest head is served.

    python -m benchmarks.fuzz_wire [--frames 1000000] [--first-seed 0] [--keys yes|no|both] [--wire tcp|ipc]

A worker process serves a few small experts on both of its endpoints. Messages of every kind are mutated
(bytes, fields, types, frames, lengths) and sent to it over several connections, which are closed and opened
again; some bytes are thrown at its ports below ZeroMQ. Meanwhile a head asks and compares each answer with
what it computes itself. With keys, mutated messages come from an allowed peer, thrown bytes from strangers.

It fails (exit code 1) if the worker ends, leaves a message without an answer, has an error of its own, gives
the head a wrong answer, keeps it waiting for `MOST_WAIT_S`, or if its memory or descriptors have grown.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from benchmarks.mutations import Mutations
from tests.workers.serving import LIMITS, SmallStore, expected, request
from transport.client import WorkerClient
from transport.keys import HeadKeys, KeyPair, WorkerKeys, secure_client
from transport.messages import (
    ErrorCode,
    ErrorReply,
    ForwardReply,
    WireError,
)
from transport.wire import decode_reply
from workers.pulse import FixedExperts, PulseServer
from workers.service import ExpertService
from workers.sessions import Sessions

BATCH = 24
"""Messages sent before their answers are read: fewer than a socket queues."""
BATCHES_A_CONNECTION = 40
THROWN_A_BATCH = 0.05
"""How often bytes are thrown at a port below ZeroMQ: mostly a new connection."""
MOST_WAIT_S = 5.0
MOST_GROWTH_BYTES = 24 << 20
HEAD_SESSION = 0x5EED_0000_1234_ABCD
"""As hard to hit upon as a real head's, which is random: a ping in its name may end its plan's epoch."""
WARM_UP = 0.1
"""Of the frames: what the worker then has of memory and descriptors is what it may have at the end."""


@dataclass(slots=True)
class Outcome:
    """What happened; `failures` is empty where all went well."""

    frames: int = 0
    messages: int = 0
    thrown: int = 0
    connections: int = 0
    served: int = 0
    worst_wait_s: float = 0.0
    growth_bytes: int = 0
    descriptors: tuple[int, int] = (0, 0)
    seconds: float = 0.0
    answers: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def work(pipe: Connection, endpoints: tuple[str, str], keys: WorkerKeys | None) -> None:
    """The worker process."""
    sessions = Sessions()
    handler = FixedExperts("w", LIMITS, "float32", SmallStore.num_experts)
    service = ExpertService(
        "w",
        SmallStore(),
        LIMITS,
        endpoints[0],
        dtype="float32",
        keys=keys,
        handler=handler,
        sessions=sessions,
    )
    pulse = PulseServer("w", handler, sessions, LIMITS, endpoints[1], keys=keys)
    service.start()
    pulse.start()
    pipe.send((service.endpoint, pulse.endpoint))
    pipe.recv()
    os._exit(0)


class Honest:
    """A head that asks without pause, in a thread, and compares."""

    def __init__(
        self, context: zmq.Context[Any], endpoint: str, keys: HeadKeys | None, outcome: Outcome
    ) -> None:
        self._outcome = outcome
        self._ended = threading.Event()
        self._store = SmallStore()
        self._client = WorkerClient(context, endpoint, LIMITS, name="w", keys=keys, session=HEAD_SESSION)
        self._client.hello(10.0)
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()
        self._client.close()

    def _ask(self) -> None:
        number = 0
        while not self._ended.wait(0.002):
            number += 1
            asked = request(number, 1 + number % 3)._replace(session=HEAD_SESSION)
            started = time.perf_counter()
            self._client.send(asked)
            try:
                reply = self._client.wait(MOST_WAIT_S)
            except WireError as error:
                self._outcome.failures.append(f"the head got what is no answer: {error}")
                return
            self._outcome.worst_wait_s = max(self._outcome.worst_wait_s, time.perf_counter() - started)
            right = expected(self._store, asked)
            if not isinstance(reply, ForwardReply) or reply.request_id != number:
                self._outcome.failures.append(f"the head asked {number} and got {reply}")
                return
            if not np.array_equal(reply.values, right.values):
                self._outcome.failures.append(f"the head got a wrong sum for {number}")
                return
            self._outcome.served += 1


class Attacker:
    """One connection at a time to each endpoint."""

    def __init__(
        self, context: zmq.Context[Any], endpoints: Sequence[str], keys: HeadKeys | None, seed: int
    ) -> None:
        self._context = context
        self._endpoints = endpoints
        self._keys = keys
        self._rng = random.Random(seed)
        self._mutations = Mutations(self._rng)
        self._sockets: list[zmq.Socket[bytes]] = []
        self._batches = 0

    def batch(self, outcome: Outcome) -> None:
        """Send a batch to one of the endpoints and read as many answers."""
        if self._batches % BATCHES_A_CONNECTION == 0:
            self._reconnect(outcome)
        self._batches += 1
        dealer = self._rng.choice(self._sockets)
        for _ in range(BATCH):
            frames = self._mutations.next()
            dealer.send_multipart(frames)
            outcome.frames += len(frames)
            outcome.messages += 1
        for _ in range(BATCH):
            if not dealer.poll(int(MOST_WAIT_S * 1000)):
                outcome.failures.append(f"a message of batch {self._batches} was not answered")
                return
            reply = decode_reply(dealer.recv_multipart(), LIMITS)
            name = reply.code.value if isinstance(reply, ErrorReply) else type(reply).__name__
            outcome.answers[name] += 1
            if name == ErrorCode.INTERNAL:
                outcome.failures.append(f"the worker could not handle a message: {reply}")
        if self._rng.random() < THROWN_A_BATCH:
            self._throw(outcome)

    def close(self) -> None:
        for dealer in self._sockets:
            dealer.close(0)
        self._sockets.clear()

    def _reconnect(self, outcome: Outcome) -> None:
        self.close()
        for endpoint in self._endpoints:
            dealer = self._context.socket(zmq.DEALER)
            if self._keys is not None:
                secure_client(dealer, self._keys)
            dealer.connect(endpoint)
            self._sockets.append(dealer)
            outcome.connections += 1

    def _throw(self, outcome: Outcome) -> None:
        """Bytes below ZeroMQ: a greeting that is right or changed, and noise behind it."""
        scheme, _, address = self._rng.choice(list(self._endpoints)).partition("://")
        greeting = bytearray(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"CURVE".ljust(20, b"\0") + bytes(32))
        if self._rng.random() < 0.7:
            greeting[self._rng.randrange(len(greeting))] = self._rng.randrange(256)
        noise = self._rng.randbytes(self._rng.choice((0, 7, 250, 4000)))
        host, _, port = address.rpartition(":")
        with suppress(OSError), socket.socket(socket.AF_UNIX if scheme == "ipc" else socket.AF_INET) as peer:
            peer.settimeout(1.0)
            peer.connect(address if scheme == "ipc" else (host, int(port)))
            peer.sendall(bytes(greeting) + b"\x04\xc8\x05HELLO\x01\x00" + noise)
            outcome.thrown += 1


def run(frames: int, *, keys: bool, wire: str = "tcp", seed: int = 0) -> Outcome:
    """Send at least so many mutated frames; see the module."""
    outcome = Outcome()
    own, head = KeyPair.make(), KeyPair.make()
    allowed = WorkerKeys(own, frozenset([head.public])) if keys else None
    head_keys = HeadKeys(head, own.public) if keys else None
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        # Forked from one that has loaded it all, and no thread of this one.
        processes = multiprocessing.get_context("forkserver")
        processes.set_forkserver_preload(["benchmarks.fuzz_wire"])
        here, there = processes.Pipe()
        name = f"ipc://{folder}/" if wire == "ipc" else "tcp://127.0.0.1:*"
        bind_to = (name + "data", name + "pulse") if wire == "ipc" else (name, name)
        process = processes.Process(target=work, args=(there, bind_to, allowed), daemon=True)
        process.start()
        stack.callback(process.join)
        stack.callback(process.kill)
        endpoints = here.recv()
        context: zmq.Context[Any] = zmq.Context()
        stack.callback(context.destroy, 0)
        honest = Honest(context, endpoints[0], head_keys, outcome)
        stack.callback(honest.stop)
        attackers = [Attacker(context, endpoints, head_keys, seed + number) for number in range(3)]
        started = time.perf_counter()
        before: tuple[int, int] | None = None
        while outcome.frames < frames and not outcome.failures and process.is_alive():
            attackers[outcome.messages // BATCH % len(attackers)].batch(outcome)
            if before is None and outcome.frames >= WARM_UP * frames:
                before = _resources(process.pid)
        outcome.seconds = time.perf_counter() - started
        for attacker in attackers:
            attacker.close()
        if process.is_alive() and before is not None:
            # Connections that were closed here are closed there a little later.
            until = time.monotonic() + MOST_WAIT_S
            while (after := _resources(process.pid))[1] > before[1] and time.monotonic() < until:
                time.sleep(0.05)
            outcome.growth_bytes = after[0] - before[0]
            outcome.descriptors = before[1], after[1]
            if outcome.growth_bytes > MOST_GROWTH_BYTES:
                outcome.failures.append(f"the worker's memory grew by {outcome.growth_bytes:,} bytes")
            if after[1] > before[1]:
                outcome.failures.append(f"descriptors grew from {before[1]} to {after[1]}")
        if not process.is_alive():
            outcome.failures.append(f"the worker ended with code {process.exitcode}")
    return outcome


def _resources(pid: int | None) -> tuple[int, int]:
    """Resident bytes that are no file's, and open descriptors."""
    resident, shared = map(int, Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1:3])
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE"), len(os.listdir(f"/proc/{pid}/fd"))


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--keys", choices=("yes", "no", "both"), default="both")
    parser.add_argument("--wire", choices=("tcp", "ipc"), default="tcp")
    args = parser.parse_args()
    failed = False
    for keys in (False, True) if args.keys == "both" else (args.keys == "yes",):
        outcome = run(args.frames, keys=keys, wire=args.wire, seed=args.first_seed)
        kinds = ", ".join(f"{name} {count:,}" for name, count in outcome.answers.most_common())
        before, after = outcome.descriptors
        wait_ms, grown_mb = outcome.worst_wait_s * 1e3, outcome.growth_bytes / 2**20
        print(
            f"{'with' if keys else 'without'} keys, {args.wire}: {outcome.frames:,} mutated frames in "
            f"{outcome.messages:,} messages, {outcome.thrown:,} handshakes, {outcome.connections:,} "
            f"connections, {outcome.seconds:.0f} s"
        )
        print(f"  answers: {kinds}")
        print(
            f"  the head: {outcome.served:,} right answers, longest wait {wait_ms:.0f} ms; "
            f"the worker: memory {grown_mb:+.1f} MB, descriptors {before} then {after}"
        )
        for failure in outcome.failures:
            print(f"  FAILED: {failure}")
        failed |= bool(outcome.failures)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
