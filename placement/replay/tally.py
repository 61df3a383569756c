"""What a simulated run amounts to: counts while it goes on, a report at its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from placement.errors import InputError
from placement.message_size import MAX_MESSAGE_ROWS
from placement.replay.durations import DurationHistogram, Durations
from placement.replay.system import System

CAUSES = (
    "memory",
    "arithmetic",
    "round trip",
    "wire",
    "shared expert",
    "queue",
    "software",
    "messages at home",
)
MEMORY, ARITHMETIC, ROUND_TRIP, WIRE, SHARED_EXPERT, QUEUE, SOFTWARE, AT_HOME = range(len(CAUSES))


OUT, BACK = 0, 1
DIRECTIONS = ("out", "back")


@dataclass(frozen=True, slots=True)
class DispatchCounts:
    """What the dispatcher counts of the same run, exactly (`Usage` in orchestrator/dispatch/usage.py).

    A worker is a box with all its tiers: a layer costs it one request, whose rows are those that need any of
    them.

    Attributes:
        activations: (token, expert) pairs computed, by worker of the plan.
        experts_read: distinct experts of each request, by worker of the plan.
        remote_layers: layer passes that asked at least one worker outside the head's process.
        messages: requests sent.
        sent_bytes, received_bytes: hidden states and sums, without routing, flags and headers.
    """

    activations: tuple[int, ...]
    experts_read: tuple[int, ...]
    remote_layers: int
    messages: int
    sent_bytes: int
    received_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class SimulationReport:
    """A simulated run.

    Attributes:
        method: "closed form" or "queueing".
        num_steps: passes of the model.
        num_tokens: tokens they added to the texts.
        duration_s: from the first step's start to the last one's end.
        step_time_s: of a pass.
        token_time_s: a pass's time by the tokens it gave a sequence: what its reader waits for each.
        remote_layers_per_token: MoE layers that asked another box, by tokens added.
        busy: share of `duration_s` that each device computes and each link's direction carries bytes.
        bytes_moved: over links, both directions, migration included; `bytes_by_link` splits it.
        bound_by_device: float64 [num_moe_layers, num_devices], share of a layer's passes that waited for it.
        bound_by_cause: float64 [num_moe_layers, len(CAUSES)], share by the largest part of that wait;
            round trip and wire are to other boxes, between processes of the head's box they are AT_HOME.
        counts: exact.
        num_events: of the queueing simulation, 0 for the closed form.
        notes: what happened on the way (a lost worker, a new plan), with its time.
        stopped: why the run ended early, None if the trace ended.
    """

    method: str
    devices: tuple[str, ...]
    num_steps: int
    num_tokens: float
    duration_s: float
    step_time_s: Durations
    token_time_s: Durations
    remote_layers_per_token: float
    busy: Mapping[str, float]
    bytes_moved: int
    bytes_by_link: Mapping[str, int]
    bound_by_device: NDArray[np.float64]
    bound_by_cause: NDArray[np.float64]
    counts: DispatchCounts
    num_events: int = 0
    notes: tuple[str, ...] = ()
    stopped: str | None = None

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.duration_s


@dataclass(slots=True, eq=False)
class Tally:
    """Sums over the passes of one run of `system`.

    `distinct`, `pairs`: int64 [num_devices], see `Demand`. `message_rows`, `answered_rows`: int64
    [num_devices], rows of requests and of their answers, at the first device of each box.
    `device_s`: float64 [num_devices], time spent computing. `migrated_bytes`: int64 [num_links, 2], beside
    the messages' own bytes. `link_s`: float64 [num_links, 2], time each way carries bytes; None for what the
    bytes take.
    """

    system: System
    message_rows: NDArray[np.int64] = field(init=False)
    answered_rows: NDArray[np.int64] = field(init=False)
    distinct: NDArray[np.int64] = field(init=False)
    pairs: NDArray[np.int64] = field(init=False)
    device_s: NDArray[np.float64] = field(init=False)
    migrated_bytes: NDArray[np.int64] = field(init=False)
    bound_device: NDArray[np.int64] = field(init=False)
    bound_cause: NDArray[np.int64] = field(init=False)
    messages: int = 0
    asking_layers: int = 0
    remote_layers: int = 0
    num_steps: int = 0
    num_tokens: float = 0.0
    steps: DurationHistogram = field(default_factory=DurationHistogram)
    tokens: DurationHistogram = field(default_factory=DurationHistogram)
    notes: list[str] = field(default_factory=list)
    stopped: str | None = None
    link_s: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        num_layers, num_devices = self.system.shape.num_moe_layers, self.system.num_devices
        self.message_rows, self.answered_rows = (np.zeros(num_devices, dtype=np.int64) for _ in range(2))
        self.distinct, self.pairs = (np.zeros(num_devices, dtype=np.int64) for _ in range(2))
        self.device_s = np.zeros(num_devices)
        self.migrated_bytes = np.zeros((len(self.system.links), 2), dtype=np.int64)
        self.bound_device = np.zeros((num_layers, num_devices), dtype=np.int64)
        self.bound_cause = np.zeros((num_layers, len(CAUSES)), dtype=np.int64)

    def add_steps(self, seconds: NDArray[np.float64], new_tokens: NDArray[np.float64]) -> None:
        """Finished passes: `seconds` float64 [num_steps], `new_tokens` float64 [num_steps, num_sequences]."""
        self.num_steps += len(seconds)
        self.num_tokens += float(new_tokens.sum())
        self.steps.add(seconds)
        self.tokens.add((seconds[:, None] / new_tokens).ravel(), new_tokens.ravel())

    def note(self, now_s: float, what: str) -> None:
        self.notes.append(f"{now_s:.3f} s: {what}")

    def report(self, method: str, duration_s: float, num_events: int = 0) -> SimulationReport:
        """Raises InputError when not one pass was finished."""
        step_time, token_time = self.steps.summary(), self.tokens.summary()
        if step_time is None or token_time is None:
            raise InputError(f"no step was finished: {self.stopped or 'the trace is empty'}")
        link_bytes = self._message_bytes() + self.migrated_bytes
        asked = self.system.is_asked
        shape, sent_rows = self.system.shape, int(self.message_rows[asked].sum())
        return SimulationReport(
            method=method,
            devices=self.system.names,
            num_steps=self.num_steps,
            num_tokens=self.num_tokens,
            duration_s=duration_s,
            step_time_s=step_time,
            token_time_s=token_time,
            remote_layers_per_token=self.remote_layers / self.num_tokens,
            busy=self._busy(link_bytes, duration_s),
            bytes_moved=int(link_bytes.sum()),
            bytes_by_link={
                f"link {node} {direction}": int(link_bytes[link, way])
                for link, node in enumerate(self.system.links)
                for way, direction in enumerate(DIRECTIONS)
            },
            bound_by_device=_shares(self.bound_device),
            bound_by_cause=_shares(self.bound_cause),
            counts=DispatchCounts(
                activations=self._by_worker(self.pairs),
                experts_read=self._by_worker(self.distinct),
                remote_layers=self.asking_layers,
                messages=self.messages,
                sent_bytes=round(sent_rows * self.system.message.hidden_bytes_per_row),
                received_bytes=int(self.answered_rows[asked].sum()) * shape.hidden_size * 4,
            ),
            num_events=num_events,
            notes=tuple(self.notes),
            stopped=self.stopped,
        )

    def _by_worker(self, of_device: NDArray[np.int64]) -> tuple[int, ...]:
        of_worker = np.zeros(len(self.system.plan.workers), dtype=np.int64)
        of_tier = self.system.plan.worker_of_tier
        np.add.at(of_worker, of_tier, of_device[: len(of_tier)])
        return tuple(of_worker.tolist())

    def _message_bytes(self) -> NDArray[np.int64]:
        """int64 [num_links, 2]."""
        message = self.system.message
        linked = self.system.link_of >= 0
        link_bytes = np.zeros((len(self.system.links), 2), dtype=np.int64)
        for way, rows, row_bytes in (
            (OUT, self.message_rows, message.request_bytes_per_row),
            (BACK, self.answered_rows, message.reply_bytes_per_row),
        ):
            num_bytes = np.rint(rows[linked] * row_bytes).astype(np.int64)
            np.add.at(link_bytes[:, way], self.system.link_of[linked], num_bytes)
        return link_bytes

    def _busy(self, link_bytes: NDArray[np.int64], duration_s: float) -> dict[str, float]:
        busy = dict(zip(self.system.names, (self.device_s / duration_s).tolist(), strict=True))
        for link, node in enumerate(self.system.links):
            device = int(np.flatnonzero(self.system.link_of == link)[0])
            bytes_per_s = self.system.problem.devices[device].link_bytes_per_s
            link_s = link_bytes[link] / bytes_per_s if self.link_s is None else self.link_s[link]
            for direction, seconds in zip(DIRECTIONS, link_s.tolist(), strict=True):
                busy[f"link {node} {direction}"] = seconds / duration_s
        return busy


def _shares(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return shares


def num_messages(rows: NDArray[np.integer]) -> int:
    """Requests that carry `rows`, any shape, at most MAX_MESSAGE_ROWS in each."""
    if rows.max(initial=0) <= MAX_MESSAGE_ROWS:
        return int(np.count_nonzero(rows > 0))
    return int(-(-rows.astype(np.int64) // MAX_MESSAGE_ROWS).sum())
