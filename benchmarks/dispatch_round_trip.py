"""One dispatch round trip beside a bare ZeroMQ exchange of the same bytes and a Ray actor call.

    python -m benchmarks.dispatch_round_trip [--rounds 2000] [--hidden-dtype float32|bfloat16]
        [--wire tcp|ipc] [--no-ray] [--json]

One token of hidden size 4096 goes from this process to another, and an int32 row comes back. Every round does
each variant once, in turns, so all of them see the same machine in the same hour:

- bare: pyzmq DEALER to ROUTER and back, as many bytes each way as the request and the answer, in one frame
- bare, two frames: the same bytes, cut as the protocol cuts them
- dispatch: `WorkerClient` and `ExpertService`: encoding, checks, ZeroMQ, decoding, and an expert of
  intermediate size 1, so that what is left of computing is the call itself. The worker times it, from numpy
  arrays to numpy arrays, and it is also shown apart
- dispatch, several: the same, waited for as the head waits for several workers
- dispatch, keys: the same as dispatch, encrypted
- moments noted: the time at several places of a dispatch and an echo, which a second table shows
- Ray actor call: a method that takes the same arrays and returns as many zeros

The bare ROUTERs share both processes with the service; Ray's actor is a third process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from typing import Any, ClassVar

import numpy as np
import torch
import zmq

import workers.service
from benchmarks.dispatch_stages import (
    StageTable,
    StampedExperts,
    StampedServer,
    asked,
    asked_bare,
    bare_stages,
    now,
    stages,
)
from benchmarks.local_ray import local_ray
from transport.client import WorkerClient
from transport.expert_rows import ExpertRows
from transport.keys import HeadKeys, KeyPair, WorkerKeys
from transport.messages import ForwardReply, ForwardRequest, WireLimits
from transport.sockets import wait_any
from transport.wire import encode
from workers.fixed_point import PartialSum
from workers.kernels import ExpertMatrices, ExpertWeights, moe_partial_sum
from workers.service import ExpertService
from workers.tiers import ExpertTier

HIDDEN_SIZE, NUM_EXPERTS, TOP_K, LAYER = 4096, 288, 8, 20
SESSION, EPOCH = 2**63, 1
WARM_UP_ROUNDS = 200
# Of Step-3.5-Flash: what one box costs a token if every layer asks it.
MOE_LAYERS = 42
LIMITS = WireLimits("benchmark", frozenset({LAYER}), HIDDEN_SIZE, NUM_EXPERTS, TOP_K)


class OneTinyExpert:
    """Expert 0 of one layer, of intermediate size 1."""

    experts: ClassVar[dict[int, tuple[int, ...]]] = {LAYER: (0,)}
    num_experts = 1
    held_bytes = 3 * HIDDEN_SIZE * 4

    def __init__(self) -> None:
        slots = torch.full((NUM_EXPERTS,), -1, dtype=torch.int32)
        slots[0] = 0
        row, column = torch.full((1, 1, HIDDEN_SIZE), 1e-3), torch.full((1, HIDDEN_SIZE, 1), 1e-3)
        wide, tall = ExpertMatrices.of(row), ExpertMatrices.of(column)
        self._experts = ExpertWeights(slots, wide, wide, tall, 0.0, TOP_K)

    def notices(self) -> tuple[str, ...]:
        return ()

    def forward(self, layer: int, rows: ExpertRows) -> PartialSum:
        return PartialSum(*moe_partial_sum(self._experts, rows))


def make_request(dtype: str) -> ForwardRequest:
    hidden = np.random.default_rng(0).standard_normal((1, HIDDEN_SIZE), dtype=np.float32)
    bits = (hidden.view(np.uint32) >> 16).astype(np.uint16)
    expert_ids = np.full((1, TOP_K), -1, np.int32)
    expert_ids[0, 0] = 0
    weights, exponents = np.full((1, TOP_K), 0.125, np.float32), np.array([-24], np.int32)
    rows = ExpertRows(hidden if dtype == "float32" else bits, expert_ids, weights, exponents)
    return ForwardRequest(1, SESSION, EPOCH, LAYER, rows)


def answer_bare(
    socket: zmq.Socket[bytes], frames: list[bytes], moments: list[tuple[int, int]] | None = None
) -> None:
    """A bare ROUTER: takes a message of as many frames as `frames`, sends `frames` back."""
    *first, last = frames
    while True:
        peer = socket.recv()
        received = now()
        for _ in frames:
            socket.recv()
        socket.send(peer, zmq.SNDMORE)
        for frame in first:
            socket.send(frame, zmq.SNDMORE)
        socket.send(last)
        if moments is not None:
            moments.append((received, now()))


def work(pipe: Connection, wire: str, directory: str, answers: list[list[bytes]], keys: WorkerKeys) -> None:
    """The other process: services, and a thread for each bare ROUTER; the last one's moments are noted."""
    torch.set_num_threads(1)
    moments: list[tuple[int, int]] = []

    def endpoint(name: str) -> str:
        return f"ipc://{directory}/{name}" if wire == "ipc" else "tcp://127.0.0.1:*"

    def service(name: str, experts: ExpertTier, keys: WorkerKeys | None = None) -> str:
        serving = ExpertService("worker", experts, LIMITS, endpoint(name), dtype="float32", keys=keys)
        serving.start()
        services.append(serving)
        return serving.endpoint

    services: list[ExpertService] = []
    endpoints = [service("plain", OneTinyExpert()), service("keys", OneTinyExpert(), keys)]
    setattr(workers.service, "Server", StampedServer)  # noqa: B010
    endpoints.append(service("stamped", StampedExperts(OneTinyExpert())))
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    for number, frames in enumerate(answers):
        socket = context.socket(zmq.ROUTER)
        socket.bind(endpoint(str(number)))
        endpoints.append(socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0"))
        noted = moments if number == len(answers) - 1 else None
        threading.Thread(target=answer_bare, args=(socket, frames, noted), daemon=True).start()
    pipe.send(endpoints)
    pipe.recv()
    pipe.send((StampedServer.moments.rows, moments))
    pipe.recv()
    os._exit(0)


def bare_exchange(
    context: zmq.Context[zmq.Socket[bytes]], endpoint: str, request: list[bytes], num_frames: int
) -> Callable[[], float]:
    socket = context.socket(zmq.DEALER)
    socket.connect(endpoint)
    *first, last = request

    def exchange() -> float:
        for frame in first:
            socket.send(frame, zmq.SNDMORE)
        socket.send(last)
        for _ in range(num_frames):
            socket.recv()
        return 0.0

    return exchange


@dataclass(slots=True)
class Stamped:
    """Exchanges whose moments are noted, each an exchange as `measure` wants it."""

    client: WorkerClient
    request: ForwardRequest
    socket: zmq.Socket[bytes]
    frames: list[bytes]
    dispatched: list[tuple[int, int, int, int]] = field(default_factory=list)
    echoed: list[tuple[int, int, int, int]] = field(default_factory=list)

    def dispatch(self) -> float:
        self.dispatched.append(asked(self.client, self.request))
        return 0.0

    def echo(self) -> float:
        self.echoed.append(asked_bare(self.socket, self.frames, 2))
        return 0.0

    def table(self, worker: list[tuple[int, int, int, int, int]], echo: list[tuple[int, int]]) -> StageTable:
        """Of the rounds that count."""
        skip = WARM_UP_ROUNDS
        return StageTable(
            stages(self.dispatched[skip:], worker[skip:]), bare_stages(self.echoed[skip:], echo[skip:])
        )


def dispatch_waiting(client: WorkerClient, request: ForwardRequest) -> Callable[[], float]:
    def exchange() -> float:
        client.send_forward(request.request_id, request.epoch, request.layer, request.rows)
        reply = client.wait(10.0)
        if not isinstance(reply, ForwardReply):
            raise RuntimeError(f"no answer but {reply}")
        return reply.compute_s

    return exchange


def dispatch_among_several(client: WorkerClient, request: ForwardRequest) -> Callable[[], float]:
    sockets = (client.socket,)

    def exchange() -> float:
        client.send_forward(request.request_id, request.epoch, request.layer, request.rows)
        wait_any(sockets, 10_000)
        reply = client.receive()
        if not isinstance(reply, ForwardReply):
            raise RuntimeError(f"no answer but {reply}")
        return reply.compute_s

    return exchange


class RayExpert:
    """The same answer from a Ray actor's method."""

    def forward(self, hidden: object, expert_ids: object, weights: object, scale_exponents: object) -> object:
        return np.zeros((1, HIDDEN_SIZE), np.int32), np.zeros(1, np.bool_)


def ray_call(request: ForwardRequest) -> Callable[[], float]:
    import ray

    remote: Any = ray.remote(num_cpus=0)(RayExpert)
    actor = remote.remote()

    def exchange() -> float:
        ray.get(actor.forward.remote(*request.rows))
        return 0.0

    return exchange


def measure(variants: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Timing]:
    """Do each variant once a round, beginning with another each time: what follows Ray finds cold caches."""
    total_s: dict[str, list[float]] = {name: [] for name in variants}
    compute_s: dict[str, list[float]] = {name: [] for name in variants}
    turns = list(variants.items())
    for number in range(WARM_UP_ROUNDS + rounds):
        turns.append(turns.pop(0))
        for name, exchange in turns:
            started = time.perf_counter()
            computing = exchange()
            elapsed = time.perf_counter() - started
            if number >= WARM_UP_ROUNDS:
                total_s[name].append(elapsed)
                compute_s[name].append(computing)
    bare_s = _low(total_s["bare"])
    return {name: Timing.of(total_s[name], compute_s[name], bare_s) for name in variants}


@dataclass(frozen=True, slots=True)
class Timing:
    """Tenth percentiles, which other work on the machine moves least, and the median beside them.

    `compute_us` is the part of the worker's call into its experts, 0 where there is none. The ratios are of
    tenth percentiles; the second is of what is left of each exchange without that call.
    """

    p10_us: float
    median_us: float
    compute_us: float
    ratio: float
    ratio_without_compute: float

    @classmethod
    def of(cls, total_s: list[float], compute_s: list[float], bare_s: float) -> Timing:
        left_s = [total - computing for total, computing in zip(total_s, compute_s, strict=True)]
        return cls(
            p10_us=_low(total_s) * 1e6,
            median_us=statistics.median(total_s) * 1e6,
            compute_us=_low(compute_s) * 1e6,
            ratio=_low(total_s) / bare_s,
            ratio_without_compute=_low(left_s) / bare_s,
        )


def _low(times_s: list[float]) -> float:
    return statistics.quantiles(times_s, n=10)[0]


def run(dtype: str, wire: str, rounds: int, with_ray: bool) -> tuple[dict[str, Timing], StageTable]:
    request = make_request(dtype)
    answer = ForwardReply(1, np.zeros((1, HIDDEN_SIZE), np.int32), np.zeros(1, np.bool_), 1e-5)
    up, down = ([bytes(frame) for frame in encode(message)] for message in (request, answer))
    with ExitStack() as stack:
        spawn = multiprocessing.get_context("spawn")
        here, there = spawn.Pipe()
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        head, own = KeyPair.make(), KeyPair.make()
        keys = WorkerKeys(own, frozenset([head.public]))
        arguments = (there, wire, directory, [[b"".join(down)], down, down], keys)
        process = spawn.Process(target=work, args=arguments, daemon=True)
        process.start()
        stack.callback(process.join)
        stack.callback(here.send, "end")
        plain, secured, stamped, *bare = here.recv()

        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        stack.callback(context.destroy, 0)
        clients = [WorkerClient(context, where, LIMITS, name="worker") for where in (plain, plain, stamped)]
        clients.append(WorkerClient(context, secured, LIMITS, name="worker", keys=HeadKeys(head, own.public)))
        for client in clients:
            client.hello(30.0)
        echo = context.socket(zmq.DEALER)
        echo.connect(bare[2])
        noted = Stamped(clients[2], request, echo, up)
        variants = {
            "bare": bare_exchange(context, bare[0], [b"".join(up)], 1),
            "bare, two frames": bare_exchange(context, bare[1], up, 2),
            "dispatch": dispatch_waiting(clients[0], request),
            "dispatch, several": dispatch_among_several(clients[1], request),
            "dispatch, keys": dispatch_waiting(clients[3], request),
            "dispatch, moments noted": noted.dispatch,
            "bare, moments noted": noted.echo,
        }
        if with_ray:
            stack.enter_context(local_ray())
            variants["Ray actor call"] = ray_call(request)
        timings = measure(variants, rounds)
        here.send("tell")
        return timings, noted.table(*here.recv())


def keys_line(timings: Mapping[str, Timing]) -> str:
    cost_us = timings["dispatch, keys"].p10_us - timings["dispatch"].p10_us
    token_ms = cost_us * MOE_LAYERS / 1e3
    return f"keys: {cost_us:.1f} µs a dispatch, {token_ms:.2f} ms a token that asks for {MOE_LAYERS} layers"


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--hidden-dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--wire", choices=("tcp", "ipc"), default="tcp")
    parser.add_argument("--no-ray", action="store_true", help="leave the Ray actor out")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    args = parser.parse_args()
    timings, where = run(args.hidden_dtype, args.wire, args.rounds, not args.no_ray)
    if args.json:
        document: dict[str, Any] = {name: asdict(timing) for name, timing in timings.items()}
        print(json.dumps(document | {"stages_us": asdict(where)}))
        return
    print(f"1 token, hidden {HIDDEN_SIZE} in {args.hidden_dtype}, {args.wire}, {args.rounds} rounds")
    print(f"{'':24}{'p10 µs':>8}{'median':>8}{'x bare':>8}  {'experts µs':>10}  {'x bare without':>14}")
    for name, t in timings.items():
        line = f"{name:24}{t.p10_us:8.1f}{t.median_us:8.1f}{t.ratio:8.2f}"
        print(line + (f"  {t.compute_us:10.1f}  {t.ratio_without_compute:14.2f}" if t.compute_us else ""))
    print(f"\n{keys_line(timings)}")
    print("\n" + "\n".join(where.lines()))


if __name__ == "__main__":
    main()
