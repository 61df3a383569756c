"""Worker boxes under the virtual clock: the production's sessions, made-up experts, and ways to fail."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from placement.experts import Experts
from placement.plan import Plan
from tests.simulation.world import World
from transport.expert_rows import ExpertRows
from transport.messages import (
    Drop,
    ErrorCode,
    ErrorReply,
    ForwardReply,
    Held,
    Hello,
    HelloReply,
    Hold,
    Ping,
    Pong,
    Reply,
    Request,
    WorkerState,
)
from workers.fixed_point import COARSEN_STEP, PartialSum
from workers.sessions import Sessions

FINGERPRINT, DTYPE = "made-up", "float32"
SESSION = 77


def contribution(layer: int, token: int, expert: int) -> int:
    """A number that only this layer, token and expert give, whole on the coarsest grid that any row needs."""
    return (1 + _mixed(layer, token, expert) % 2**16) << 2 * COARSEN_STEP


def needed_exponent(layer: int, token: int, expert: int) -> int:
    """The finest grid on which an expert's contribution to a row fits: most fit the first one."""
    drawn = _mixed(token, expert, layer) % 64
    return 2 * COARSEN_STEP if drawn == 0 else COARSEN_STEP if drawn < 5 else 0


def _mixed(*numbers: int) -> int:
    return int.from_bytes(blake2b(repr(numbers).encode(), digest_size=8).digest(), "little")


@cache
def _pair(layer: int, token: int, expert: int) -> tuple[int, int]:
    return contribution(layer, token, expert), needed_exponent(layer, token, expert)


def partial_sum(layer: int, rows: ExpertRows) -> PartialSum:
    """Of made-up experts; a row's first element is its token."""
    tokens = np.asarray(rows.hidden)[:, 0].view(np.float32).astype(np.int64).tolist()
    values = np.zeros((len(tokens), rows.hidden.shape[1]), np.int32)
    saturated = np.zeros(len(tokens), np.bool_)
    exponents = rows.scale_exponents.tolist()
    for i, (token, experts) in enumerate(zip(tokens, rows.expert_ids.tolist(), strict=True)):
        pairs = [_pair(layer, token, expert) for expert in experts if expert >= 0]
        saturated[i] = any(needed > exponents[i] for _, needed in pairs)
        if not saturated[i]:
            values[i] = sum(number for number, _ in pairs) >> exponents[i]
    return PartialSum(values, saturated)


class Holdings:
    """What one process holds: absolute layer -> experts."""

    def __init__(self, experts: Mapping[int, tuple[int, ...]]) -> None:
        self.experts = {layer: set(ids) for layer, ids in experts.items()}

    def hold(self, order: Hold) -> Held:
        for layer, ids in order.experts.items():
            self.experts.setdefault(layer, set()).update(ids)
        return Held(order.request_id, order.order, True, 0, "")

    def drop(self, order: Drop) -> Held:
        for layer, ids in order.experts.items():
            self.experts.get(layer, set()).difference_update(ids)
        return Held(order.request_id, order.order, True, 0, "")

    def lacks(self, layer: int, ids: NDArray[np.int32]) -> bool:
        return not set(ids[ids >= 0].tolist()) <= self.experts.get(layer, set())

    # As the head's own tier.

    def forward(self, layer: int, rows: ExpertRows) -> PartialSum:
        assert not self.lacks(layer, rows.expert_ids), "the head is asked for what it does not hold"
        return partial_sum(layer, rows)


@dataclass
class Node:
    """One box. `answer` takes (node, reply) to the head, by "pulse" or "data"."""

    world: World
    name: str
    planned: Experts
    to_pulse: Callable[[Node, Reply], None]
    to_data: Callable[[Node, Reply], None]
    compute_s: float = 0.002
    instance: int = 1
    is_up: bool = True
    is_paused: bool = False
    is_cut: bool = False
    refuses: bool = False
    hangs: bool = False
    lies: bool = False
    most_waiting: int = 1_000
    slow: float = 1.0
    held: Holdings = field(init=False)
    sessions: Sessions = field(init=False)
    _waiting: deque[tuple[int, int, ExpertRows]] = field(init=False)
    _late: list[Callable[[], None]] = field(default_factory=list)
    not_held: int = 0
    is_greeted: bool = False
    _is_busy: bool = False

    def __post_init__(self) -> None:
        self.start(self.instance)

    def start(self, instance: int) -> None:
        """A fresh process, which holds what the plan says."""
        self.instance, self.is_up, self.is_paused, self.hangs = instance, True, False, False
        self.held = Holdings(self.planned)
        self.sessions = Sessions(lambda: self.world.now_s)
        self._waiting = deque()
        self._late = []
        self._is_busy = False
        self.is_greeted = False

    def kill(self) -> None:
        self.is_up = False
        self.instance += 1

    def resume(self) -> None:
        self.is_paused = False
        late, self._late = self._late, []
        for happen in late:
            happen()
        self._work()

    def get_pulse(self, request: Request) -> None:
        self._when_awake(lambda: self._pulse(request))

    def get_data(self, request_id: int, epoch: int, layer: int, rows: ExpertRows) -> None:
        self._when_awake(lambda: self._data(request_id, epoch, layer, rows))

    def _when_awake(self, happen: Callable[[], None]) -> None:
        if not self.is_up or self.is_cut:
            return
        if self.is_paused:
            self._late.append(happen)
        else:
            happen()

    def _pulse(self, request: Request) -> None:
        reply: Reply
        if isinstance(request, Ping):
            self.sessions.pinged(request.session, request.oldest_epoch)
            seen = self.sessions.seen(request.session)
            reply = Pong(
                request.request_id,
                self.instance,
                WorkerState.READY,
                seen.queue_depth,
                seen.received_id,
                seen.open_ids,
                seen.computing_id,
                seen.computing_s,
                0,
            )
        elif isinstance(request, Hello):
            self.is_greeted = True
            reply = HelloReply(
                request.request_id, self.name, self.instance, WorkerState.READY, FINGERPRINT, "", DTYPE, 0, ""
            )
        elif isinstance(request, Hold):
            reply = self.held.hold(request)
        else:
            assert isinstance(request, Drop)
            reply = self.held.drop(request)
        self.to_pulse(self, reply)

    def _data(self, request_id: int, epoch: int, layer: int, rows: ExpertRows) -> None:
        if epoch < self.sessions.received(SESSION, request_id):
            self._refuse(request_id, ErrorCode.WRONG_EPOCH)
        elif self.refuses:
            self._refuse(request_id, ErrorCode.INTERNAL)
        elif self.held.lacks(layer, rows.expert_ids):
            # Of a process that nobody greeted yet, the head cannot know.
            self.not_held += self.is_greeted
            self._refuse(request_id, ErrorCode.EXPERT_NOT_HELD)
        elif len(self._waiting) >= self.most_waiting:
            self._refuse(request_id, ErrorCode.BUSY)
        else:
            self._waiting.append((request_id, layer, rows))
            self._work()

    def _refuse(self, request_id: int, code: ErrorCode) -> None:
        self.sessions.closed(SESSION)
        self.to_data(self, ErrorReply(request_id, code, "no"))

    def _work(self) -> None:
        if self._is_busy or self.is_paused or not self.is_up or not self._waiting:
            return
        self._is_busy = True
        request_id, layer, rows = self._waiting.popleft()
        self.sessions.computing(SESSION, request_id)
        if self.hangs:
            return
        instance = self.instance

        def done() -> None:
            if not self.is_up or self.instance != instance:
                return
            if self.is_paused:
                self._late.append(done)
                return
            part = partial_sum(layer, rows)
            self.sessions.computed(SESSION)
            self._is_busy = False
            values = part.values + 1 if self.lies else part.values
            self.to_data(self, ForwardReply(request_id, values, part.saturated, 0.0))
            self._work()

        self.world.at(self.world.now_s + self.compute_s * self.slow * (0.5 + self.world.rng.random()), done)


def nodes_of(
    world: World,
    plan: Plan,
    to_pulse: Callable[[Node, Reply], None],
    to_data: Callable[[Node, Reply], None],
) -> dict[int, Node]:
    """A node for each worker outside the head's process, by worker index."""
    asked = {worker.name for worker in plan.asked_workers}
    return {
        index: Node(world, worker.name, plan.experts_of(worker.name), to_pulse, to_data)
        for index, worker in enumerate(plan.workers)
        if worker.name in asked
    }
