"""Runs a layer's routed experts where the plan put them: the sockets and the clock around `LayerSum`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count

import numpy as np
import zmq
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.dispatch.layer_sum import Action, Ask, LayerSum
from orchestrator.dispatch.usage import Usage
from orchestrator.timing import StepTimer
from placement.assign.one_step import assign_experts
from placement.errors import WorkerRefused
from placement.holders import NO_WORKER, LayerHolders
from placement.patience import Patience
from placement.plan import Plan
from placement.wire_form import BFLOAT16_ROWS, FLOAT32_ROWS, WireForm
from transport.client import WorkerClient
from transport.expert_rows import ExpertRows, Hidden
from transport.messages import ErrorCode, ErrorReply, ForwardReply, WireError
from transport.rounded_hidden import RoundedHidden
from workers import fixed_point
from workers.kernels import round_rows
from workers.tiers import ExpertTier


@dataclass(slots=True)
class Asked:
    """One layer on its way: what `Dispatcher.ask` has begun and `collect` ends.

    `here` is what is left to this process. `wire` are the rows as they travel, made when first sent.
    """

    layer: int
    rows: ExpertRows
    work: LayerSum
    here: list[Ask] = field(default_factory=list)
    wire: Hidden | None = None


class Dispatcher:
    """The head's `ExpertRunner`: its own experts here, the others over ZeroMQ, all at the same time.

    Args:
        plan: who holds what, and what each layer's rows travel in; worker "head" is this process.
        local: the experts of worker "head", None when it has none.
        clients: connected clients by worker name, one for every other worker that holds experts.
        timer: shared with the model.
    """

    def __init__(
        self,
        plan: Plan,
        local: ExpertTier | None,
        clients: Mapping[str, WorkerClient],
        *,
        max_rows: int,
        timer: StepTimer | None = None,
        patience: Patience | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.plan = plan
        self.timer = timer if timer is not None else StepTimer()
        self.usage = Usage([0] * len(plan.workers))
        self.lost: set[int] = set()
        self._local = local
        self._local_worker = plan.local_worker
        self._names = [worker.name for worker in plan.workers]
        self._clients = {self._names.index(name): client for name, client in clients.items()}
        self._wire_forms = plan.wire_forms()
        self._max_rows = max_rows
        self._patience = patience if patience is not None else Patience()
        self._clock = clock
        self._request_ids = count(1)
        self._choose = {layer: partial(self._choose_in, row) for row, layer in enumerate(plan.moe_layers)}
        self._costs = plan.replica_costs
        # One more at the end, for the tier -1 of an expert that nobody holds.
        self._worker_of_tier = np.append(plan.worker_of_tier, NO_WORKER)
        self._holders: Sequence[LayerHolders] = plan.holder_table.layers
        self._holders_without: frozenset[int] = frozenset()
        self._by_socket = {client.socket: worker for worker, client in self._clients.items()}
        if self._clients:
            self._poller = zmq.Poller()
            for socket in self._by_socket:
                self._poller.register(socket, zmq.POLLIN)

    def ask(self, layer: int, rows: ExpertRows) -> Asked:
        """See `ExpertRunner.ask`: requests to other workers leave, nothing is computed here yet.

        Raises:
            WorkerLost: a worker is gone and nobody else holds its experts, or it takes no more requests.
        """
        with self.timer.part("dispatch"):
            work = LayerSum(
                layer=layer,
                expert_ids=rows.expert_ids,
                scale_exponents=rows.scale_exponents,
                hidden_size=rows.hidden.shape[1],
                names=self._names,
                choose=self._choose[layer],
                request_ids=self._request_ids,
                coarser=fixed_point.coarser,
                max_coarsenings=fixed_point.MAX_COARSENINGS,
                max_rows=self._max_rows,
                patience=self._patience,
                lost=self.lost,
            )
            asked = Asked(layer, rows, work)
            before = self.usage.messages
            self._send(work.begin(self._clock()), asked)
            self.usage.remote_layers += self.usage.messages > before
        return asked

    def collect(self, asked: Asked) -> Tensor:
        """See `ExpertRunner.collect`: this process's own experts first, then what the others answer.

        Raises:
            WorkerLost: a worker is gone and nobody else holds its experts.
            WorkerRefused: a worker answered with an error.
            NonFiniteError: an expert's output is not finite.
        """
        work = asked.work
        with self.timer.part("dispatch"):
            while True:
                while asked.here:
                    self._compute(asked.here.pop(), asked)
                if work.finished:
                    break
                self._wait(asked)
            self.usage.coarsened_rows += work.coarsened_rows
            return fixed_point.to_float32(*work.result())

    def _choose_in(
        self, row: int, expert_ids: NDArray[np.int32], lost: frozenset[int]
    ) -> NDArray[np.integer]:
        """The worker of each expert of a layer, by the layer's row in the plan."""
        if lost != self._holders_without:
            self._holders = self.plan.without(lost).layers
            self._holders_without = lost
        return self._worker_of_tier.take(assign_experts(expert_ids, self._holders[row], self._costs))

    def _send(self, actions: Sequence[Action], asked: Asked) -> None:
        """Send what is for other workers, and note what is for this process."""
        for action in actions:
            if action.worker == self._local_worker:
                if isinstance(action, Ask):
                    self._count(action)
                    asked.here.append(action)
            elif isinstance(action, Ask):
                with self.timer.part("wire"):
                    self._count(action)
                    if asked.wire is None:
                        asked.wire = _as_sent(asked.rows.hidden, self._wire_forms[asked.layer])
                    rows = _rows_of(action, asked.rows, asked.wire)
                    client = self._clients[action.worker]
                    client.send_forward(action.request_id, self.plan.epoch, asked.layer, rows)
                    self.usage.messages += 1
                    self.usage.sent_bytes += rows.hidden.nbytes
            else:
                self._clients[action.worker].ping(next(self._request_ids))

    def _count(self, ask: Ask) -> None:
        self.usage.activations[ask.worker] += int(np.count_nonzero(ask.expert_ids >= 0))

    def _compute(self, ask: Ask, asked: Asked) -> None:
        if self._local is None:
            raise WorkerRefused("the plan puts experts on the head, but the head was started without any")
        with self.timer.part("local_experts"):
            part = self._local.forward(asked.layer, _rows_of(ask, asked.rows, asked.rows.hidden))
        actions = asked.work.partial(ask.worker, ask.request_id, part.values, part.saturated, self._clock())
        self._send(actions, asked)

    def _wait(self, asked: Asked) -> None:
        """Until something arrives or is due."""
        work = asked.work
        with self.timer.part("remote_wait"):
            wait_s = max(0.0, work.wake_at_s() - self._clock())
            events = self._poller.poll(math.ceil(wait_s * 1000))
        now_s = self._clock()
        actions: list[Action] = []
        for socket, _ in events:
            actions += self._receive(self._by_socket[socket], work, now_s)
        self._send(actions + work.tick(now_s), asked)

    def _receive(self, worker: int, work: LayerSum, now_s: float) -> list[Action]:
        """Handle the next message of `worker`. If it has sent more, the poller reports the socket again."""
        name = self._names[worker]
        try:
            with self.timer.part("wire"):
                reply = self._clients[worker].receive()
        except WireError as error:
            raise WorkerRefused(f"worker '{name}' sent what is no answer: {error}") from error
        if isinstance(reply, ForwardReply):
            self.usage.received_bytes += reply.values.nbytes
            return work.partial(worker, reply.request_id, reply.values, reply.saturated, now_s)
        if isinstance(reply, ErrorReply) and reply.code == ErrorCode.BUSY:
            work.busy(worker, reply.request_id, now_s)
        elif isinstance(reply, ErrorReply):
            work.refused(worker, reply.request_id, f"{reply.message} ({reply.code})", now_s)
        elif reply is not None:
            work.heard(worker, now_s)
        return []


def _as_sent(hidden: Hidden, form: WireForm) -> Hidden:
    """Float32 rows as they travel; those that go in bfloat16 are rounded to it already."""
    if isinstance(hidden, RoundedHidden) or form == FLOAT32_ROWS:
        return hidden
    if form == BFLOAT16_ROWS:
        return (hidden.view(np.uint32) >> 16).astype(np.uint16)
    return round_rows(hidden.view(np.float32), form.blocks)


def _rows_of(ask: Ask, rows: ExpertRows, hidden: Hidden) -> ExpertRows:
    """The rows of an ask, without copies where those are all."""
    weights = rows.weights
    if len(ask.rows) != len(hidden):
        hidden, weights = hidden[ask.rows], weights[ask.rows]
    return ExpertRows(hidden, ask.expert_ids, weights, ask.scale_exponents)
