"""Where the microseconds of a dispatch go: moments taken at both ends, and what lies between them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import zmq

from transport.client import WorkerClient
from transport.expert_rows import ExpertRows
from transport.messages import ForwardReply, ForwardRequest, Reply, Request, WireError
from transport.server import Server
from workers.fixed_point import PartialSum
from workers.tiers import ExpertTier

now = time.perf_counter_ns
"""One clock for all processes of a machine."""

STAGES = (
    "head: encode, hand to libzmq",
    "on the way there, the worker woken",
    "worker: receive, check, decode",
    "worker: queue, begin",
    "worker: the experts",
    "worker: encode, hand to libzmq",
    "on the way back, the head woken",
    "head: receive, check, decode",
)


@dataclass(slots=True)
class WorkerMoments:
    """When the worker did what, a row a request: woken, decoded, begun, computed, sent."""

    rows: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    woken: int = 0
    decoded: int = 0
    begun: int = 0
    computed: int = 0


class StampedServer(Server):
    """Notes the moments of its thread that computes."""

    moments = WorkerMoments()

    def wait(self) -> bool:
        going_on = super().wait()
        self.moments.woken = now()
        return going_on

    def receive(self) -> tuple[bytes, Request | WireError] | None:
        received = super().receive()
        if received is not None and isinstance(received[1], ForwardRequest):
            self.moments.decoded = now()
        return received

    def send(self, peer: bytes, reply: Reply) -> bool:
        sent = super().send(peer, reply)
        if isinstance(reply, ForwardReply):
            of = self.moments
            of.rows.append((of.woken, of.decoded, of.begun, of.computed, now()))
        return sent


class StampedExperts:
    """Notes when the experts begin and end."""

    def __init__(self, experts: ExpertTier) -> None:
        self._tier = experts
        self.experts = experts.experts
        self.num_experts = experts.num_experts
        self.held_bytes = experts.held_bytes

    def notices(self) -> tuple[str, ...]:
        return self._tier.notices()

    def forward(self, layer: int, rows: ExpertRows) -> PartialSum:
        StampedServer.moments.begun = now()
        partial_sum = self._tier.forward(layer, rows)
        StampedServer.moments.computed = now()
        return partial_sum


def asked(client: WorkerClient, request: ForwardRequest) -> tuple[int, int, int, int]:
    """One exchange with a `StampedServer`: begun, handed over, woken, decoded."""
    begun = now()
    client.send_forward(request.request_id, request.epoch, request.layer, request.rows)
    handed = now()
    client.socket.poll()
    woken = now()
    reply = client.receive()
    if not isinstance(reply, ForwardReply):
        raise RuntimeError(f"no answer but {reply}")
    return begun, handed, woken, now()


def asked_bare(
    socket: zmq.Socket[bytes], request: Sequence[bytes], num_frames: int
) -> tuple[int, int, int, int]:
    """One exchange with a bare ROUTER: begun, handed over, woken, received."""
    *first, last = request
    begun = now()
    for frame in first:
        socket.send(frame, zmq.SNDMORE)
    socket.send(last)
    handed = now()
    socket.poll()
    woken = now()
    for _ in range(num_frames):
        socket.recv()
    return begun, handed, woken, now()


def stages(
    head: Sequence[tuple[int, int, int, int]], worker: Sequence[tuple[int, int, int, int, int]]
) -> dict[str, float]:
    """Median microseconds of each stage."""
    moments = [(h[0], h[1], *w, h[2], h[3]) for h, w in zip(head, worker, strict=True)]
    return {
        name: statistics.median(m[place + 1] - m[place] for m in moments) / 1e3
        for place, name in enumerate(STAGES)
    }


def bare_stages(
    head: Sequence[tuple[int, int, int, int]], worker: Sequence[tuple[int, int]]
) -> dict[str, float]:
    """Those of an echo; the worker's rows are received and sent."""
    moments = [(h[0], h[1], *w, h[2], h[3]) for h, w in zip(head, worker, strict=True)]
    names = (STAGES[0], STAGES[1], STAGES[5], STAGES[6], STAGES[7])
    return {
        name: statistics.median(m[place + 1] - m[place] for m in moments) / 1e3
        for place, name in enumerate(names)
    }


@dataclass(frozen=True, slots=True)
class StageTable:
    """Median microseconds of each stage, of a dispatch and of a bare echo."""

    dispatch: Mapping[str, float]
    bare: Mapping[str, float]

    def lines(self) -> list[str]:
        """For a person: each stage beside the echo's, and what it takes more."""
        lines = [f"{'where the time goes, µs':40}{'dispatch':>10}{'bare':>8}{'more':>8}"]
        together = ("together", sum(self.dispatch.values()), sum(self.bare.values()))
        rows = [(name, us, self.bare.get(name, 0.0)) for name, us in self.dispatch.items()]
        return lines + [
            f"{name:40}{us:10.1f}{echo:8.1f}{us - echo:8.1f}" for name, us, echo in (*rows, together)
        ]
