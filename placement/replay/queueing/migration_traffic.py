"""Experts on their way to where a new plan wants them, beside the requests of the running one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from placement.replay.queueing.event_loop import EventLoop, Station
from placement.replay.queueing.scenario import NewPlan
from placement.replay.queueing.transfers import Transfer
from placement.replay.system import System

Way = tuple[Station, Station]
"""The two directions of a link: from the head to the node, and back."""


@dataclass(slots=True, eq=False)
class _Receiver:
    """A worker that takes one expert after another."""

    waiting: deque[Transfer]
    left_bytes: int = 0


@dataclass(slots=True, eq=False)
class MigrationTraffic:
    """Sends chunks through the links' queues; a chunk between two boxes takes both their links at once.

    Copies inside a box take the time of the slower memory and meet nobody. Reading and writing weights
    beside expert work is not charged to the devices.

    Args:
        ways: by link of `system`.
        dead_s: by device, when it is lost.
        on_done: called once, with this and None, or with what made the move impossible.
    """

    loop: EventLoop
    system: System
    ways: Sequence[Way]
    dead_s: Sequence[float]
    new: NewPlan
    moves: Sequence[Transfer]
    on_done: Callable[[MigrationTraffic, str | None], None]
    moved_bytes: int = 0
    sent_bytes: dict[tuple[int, int], int] = field(default_factory=dict)
    _receivers: list[_Receiver] = field(default_factory=list)
    _finished: bool = False

    def begin(self) -> None:
        by_destination: dict[int, deque[Transfer]] = {}
        for move in self.moves:
            by_destination.setdefault(move.destination, deque()).append(move)
        self._receivers = [_Receiver(waiting) for waiting in by_destination.values()]
        if not self._receivers:
            self._finish(None)
        for receiver in self._receivers:
            receiver.left_bytes = self._bytes_of(receiver.waiting[0])
            self._send(receiver)

    def _send(self, receiver: _Receiver) -> None:
        if self._finished:
            return
        now_s = self.loop.now_s
        move = receiver.waiting[0]
        for worker in (move.source, move.destination):
            if self.dead_s[worker] <= now_s:
                self._finish(f"worker {self.system.names[worker]!r} was lost on the way")
                return
        num_bytes = min(receiver.left_bytes, self.new.chunk_bytes)
        done_s = max(now_s + num_bytes / self.new.bytes_per_s, self._arrival_s(move, num_bytes, now_s))
        receiver.left_bytes -= num_bytes
        self.moved_bytes += num_bytes
        self.loop.at(done_s, self._arrived, receiver)

    def _arrived(self, receiver: _Receiver) -> None:
        if receiver.left_bytes == 0:
            receiver.waiting.popleft()
            if receiver.waiting:
                receiver.left_bytes = self._bytes_of(receiver.waiting[0])
        if receiver.waiting:
            self._send(receiver)
        elif not any(other.waiting for other in self._receivers):
            self._finish(None)

    def _bytes_of(self, move: Transfer) -> int:
        return self.new.plan.layers[move.row].expert_bytes

    def _arrival_s(self, move: Transfer, num_bytes: int, now_s: float) -> float:
        devices, link_of = self.system.problem.devices, self.system.link_of
        source, destination = devices[move.source], devices[move.destination]
        if source.tier.node == destination.tier.node:
            slower = min(source.bandwidth_bytes_per_s, destination.bandwidth_bytes_per_s)
            return now_s + num_bytes / slower
        arrival_s = now_s
        for device, worker, way in ((source, move.source, 1), (destination, move.destination, 0)):
            link = int(link_of[worker])
            if link >= 0 and not device.is_home:
                station = self.ways[link][way]
                arrival_s = max(arrival_s, station.serve(now_s, num_bytes / device.link_bytes_per_s))
                self.sent_bytes[link, way] = self.sent_bytes.get((link, way), 0) + num_bytes
        return arrival_s

    def _finish(self, obstacle: str | None) -> None:
        if not self._finished:
            self._finished = True
            self.on_done(self, obstacle)
