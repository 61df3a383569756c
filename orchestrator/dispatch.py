"""Runs a layer's routed experts wherever the plan put them: sockets and clock around `LayerSum`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from itertools import count

import numpy as np
import torch
import zmq
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.layer_sum import Action, Ask, LayerSum
from orchestrator.timing import StepTimer
from placement.assign.one_step import assign_experts
from placement.errors import WorkerRefused
from placement.holders import LayerHolders
from placement.patience import Patience
from placement.plan import Plan
from transport.client import WorkerClient
from transport.expert_rows import ExpertRows, Hidden
from transport.messages import ErrorCode, ErrorReply, ForwardReply, ForwardRequest, WireError
from workers import fixed_point
from workers.store import ExpertStore


@dataclass(slots=True)
class Usage:
    """What was asked of whom, since the last reset.

    Attributes:
        activations: (token, expert) pairs computed, by worker index.
        remote_layers: layer passes that asked at least one worker outside this process.
        messages: requests sent, probes left out.
        sent_bytes, received_bytes: tensors of requests and answers, headers left out.
        coarsened_rows: rows that had to be asked again on a coarser grid.
    """

    activations: list[int]
    remote_layers: int = 0
    messages: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    coarsened_rows: int = 0

    def since(self, earlier: Usage) -> Usage:
        """What was added after `earlier`, a copy made of these counts."""
        counts = {f.name: getattr(self, f.name) - getattr(earlier, f.name) for f in fields(self)[1:]}
        activations = [now - then for now, then in zip(self.activations, earlier.activations, strict=True)]
        return Usage(activations, **counts)

    def copy(self) -> Usage:
        return replace(self, activations=list(self.activations))


@dataclass(slots=True)
class _Inputs:
    """One layer's rows as this process's store and as the wire take them; the wire form is made on demand."""

    layer: int
    rows: ExpertRows
    wire_dtype: torch.dtype
    _wire: Hidden | None = field(default=None)

    def here(self, ask: Ask) -> ExpertRows:
        return self._of(ask, self.rows.hidden)

    def request(self, ask: Ask, epoch: int) -> ForwardRequest:
        if self._wire is None:
            hidden = self.rows.hidden
            if self.wire_dtype is torch.float32:
                self._wire = hidden
            else:  # already rounded to bfloat16: the upper half of each float32 is the number
                self._wire = (hidden.view(np.uint32) >> 16).astype(np.uint16)
        return ForwardRequest(ask.request_id, epoch, self.layer, self._of(ask, self._wire))

    def _of(self, ask: Ask, hidden: Hidden) -> ExpertRows:
        weights = self.rows.weights
        if len(ask.rows) != len(hidden):
            hidden, weights = hidden[ask.rows], weights[ask.rows]
        return ExpertRows(hidden, ask.expert_ids, weights, ask.scale_exponents)


class Dispatcher:
    """The head's `ExpertRunner`: its own experts here, the others over ZeroMQ, all at the same time.

    Args:
        plan: who holds what; worker "head" is this process.
        local: the experts of worker "head", None when it has none.
        clients: connected clients by worker name, one for every other worker of the plan.
        dtype: what rows travel in, float32 or bfloat16; with bfloat16 `run` is given rows already rounded.
        timer: shared with the model.
    """

    def __init__(
        self,
        plan: Plan,
        local: ExpertStore | None,
        clients: Mapping[str, WorkerClient],
        *,
        dtype: torch.dtype,
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
        self._dtype = dtype
        self._max_rows = max_rows
        self._patience = patience if patience is not None else Patience()
        self._clock = clock
        self._request_ids = count(1)
        self._row_of = {layer: row for row, layer in enumerate(plan.moe_layers)}
        self._costs = plan.replica_costs
        self._worker_of_tier = plan.worker_of_tier
        self._holders: Sequence[LayerHolders] = plan.holder_table.layers
        self._holders_without: frozenset[int] = frozenset()
        self._poller = zmq.Poller()
        self._by_socket = {client.socket: worker for worker, client in self._clients.items()}
        for socket in self._by_socket:
            self._poller.register(socket, zmq.POLLIN)

    def run(self, layer: int, rows: ExpertRows, while_waiting: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        """See `ExpertRunner.run`. Remote requests leave first; the rest of the work happens meanwhile.

        Raises:
            WorkerLost: a worker is gone and nobody else holds its experts.
            WorkerRefused: a worker answered with an error.
            NonFiniteError: an expert's output is not finite.
        """
        with self.timer.part("dispatch"):
            inputs = _Inputs(layer, rows, self._dtype)
            work = LayerSum(
                layer=layer,
                expert_ids=rows.expert_ids,
                scale_exponents=rows.scale_exponents,
                hidden_size=rows.hidden.shape[1],
                names=self._names,
                choose=partial(self._choose, self._row_of[layer]),
                request_ids=self._request_ids,
                coarser=fixed_point.coarser,
                max_coarsenings=fixed_point.MAX_COARSENINGS,
                max_rows=self._max_rows,
                patience=self._patience,
                lost=self.lost,
            )
            here = self._send(work.begin(self._clock()), inputs)
            self.usage.remote_layers += any(worker != self._local_worker for worker in work.owing())
        meanwhile = while_waiting()
        while True:
            while here:
                here += self._compute(here.pop(), work, inputs)
            if work.finished:
                break
            here += self._wait(work, inputs)
        with self.timer.part("dispatch"):
            self.usage.coarsened_rows += work.coarsened_rows
            return fixed_point.to_float32(*work.result()), meanwhile

    def _choose(self, row: int, expert_ids: NDArray[np.int32], lost: frozenset[int]) -> NDArray[np.integer]:
        if lost != self._holders_without:
            self._holders = self.plan.without(lost).layers
            self._holders_without = lost
        tiers = assign_experts(expert_ids, self._holders[row], self._costs)
        return np.where(tiers < 0, tiers, self._worker_of_tier[tiers])

    def _send(self, actions: Sequence[Action], inputs: _Inputs) -> list[Ask]:
        """Send what is for other workers; returns what is for this process."""
        here = []
        for action in actions:
            if action.worker == self._local_worker:
                if isinstance(action, Ask):
                    self._count(action)
                    here.append(action)
            elif isinstance(action, Ask):
                with self.timer.part("wire"):
                    self._count(action)
                    request = inputs.request(action, self.plan.epoch)
                    self._clients[action.worker].send(request)
                    self.usage.messages += 1
                    self.usage.sent_bytes += request.rows.hidden.nbytes
            else:
                self._clients[action.worker].ping(next(self._request_ids))
        return here

    def _count(self, ask: Ask) -> None:
        self.usage.activations[ask.worker] += int(np.count_nonzero(ask.expert_ids >= 0))

    def _compute(self, ask: Ask, work: LayerSum, inputs: _Inputs) -> list[Ask]:
        if self._local is None:
            raise WorkerRefused("the plan puts experts on the head, but the head was started without any")
        with self.timer.part("local_experts"):
            part = self._local.forward(inputs.layer, inputs.here(ask))
        with self.timer.part("dispatch"):
            actions = work.partial(ask.worker, ask.request_id, part.values, part.saturated, self._clock())
            return self._send(actions, inputs)

    def _wait(self, work: LayerSum, inputs: _Inputs) -> list[Ask]:
        """Until something arrives or is due; returns what that leaves to this process."""
        with self.timer.part("remote_wait"):
            wait_s = max(0.0, work.wake_at_s() - self._clock())
            events = self._poller.poll(math.ceil(wait_s * 1000))
        actions: list[Action] = []
        with self.timer.part("dispatch"):
            now_s = self._clock()
            for socket, _ in events:
                worker = self._by_socket[socket]
                actions += self._receive(worker, work, now_s)
            actions += work.tick(now_s)
            return self._send(actions, inputs)

    def _receive(self, worker: int, work: LayerSum, now_s: float) -> list[Action]:
        """The next message of `worker`; the poller tells again while there are more."""
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
