"""What probes do to a setup: ask one process or all of them for some experts, and time it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.fidelity.clocks import mean, timed
from benchmarks.fidelity.processes import RunningWorker
from benchmarks.fidelity.rows import rotated, same_experts
from orchestrator.dispatch.dispatcher import Dispatcher
from orchestrator.dispatch.pass_lost import PassLost
from orchestrator.model.moe import MoeWeights
from orchestrator.model.step35 import Step35Model
from placement.model_shape import ModelShape
from placement.plan import Plan
from transport.expert_rows import ExpertRows
from transport.messages import ForwardReply, ForwardRequest
from workers.store import ExpertStore

SLOW_SHARE = 2
"""One repetition in so many also measures what takes as long as a chunk."""
EXPERTS = 4
"""Distinct experts of a request, where one is compared with several."""
_EXPONENT = -24
_request_ids = count(1)


@dataclass(slots=True)
class UncountedExperts:
    """An `ExpertRunner` whose sums are zero and whose time is left out.

    It reads as many experts as a token does in each layer all the same, or the head's own code, caches and
    weights would be warm where in a step megabytes of experts have just passed.
    """

    store: ExpertStore
    read_s: float = 0.0

    def begin_pass(self, lost: PassLost | None = None) -> None:
        """Nothing to settle."""

    def ask(self, layer: int, rows: ExpertRows) -> ExpertRows:
        started = time.perf_counter()
        _forward(self.store, layer, self.store.experts[layer][-self.store.top_k :])
        self.read_s += time.perf_counter() - started
        return rows

    def collect(self, asked: ExpertRows) -> Tensor:
        return torch.zeros(asked.hidden.shape)

    def collect_on_grid(self, asked: ExpertRows) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        return np.zeros(asked.hidden.shape, np.int32), asked.scale_exponents

    def count_own(self, pairs: int) -> None:
        """Nobody asks."""

    def timed(self, action: Callable[[], object]) -> float:
        """Seconds of `action` without those of the experts it ran."""
        before_s = self.read_s
        return timed(action) - (self.read_s - before_s)


@dataclass(frozen=True, slots=True)
class Bench:
    """One setup at work, to be probed as often as asked.

    Attributes:
        store: some experts of every layer, for this process to compute.
        head: with `experts`.
        context: tokens that passes of the head stand behind.
        repeats: of each measurement.
    """

    shape: ModelShape
    plan: Plan
    store: ExpertStore
    head: Step35Model
    experts: UncountedExperts
    dispatcher: Dispatcher
    workers: Sequence[RunningWorker]
    context: int
    repeats: int

    @property
    def slow_turns(self) -> int:
        return -(-self.repeats // SLOW_SHARE)

    def layer(self, turn: int) -> int:
        return self.shape.moe_layers[turn % self.shape.num_moe_layers]

    # This process alone.

    def local(self, layer: int, experts: Sequence[int]) -> None:
        """One row that chooses `experts` of `store`."""
        _forward(self.store, layer, experts)

    def head_work(self, turn: int) -> None:
        """What lies between two requests of a step: workers fall asleep, this process's caches turn cold."""
        layer = self.layer(turn)
        self.local(layer, self.store.experts[layer][:EXPERTS])

    def shared_expert(self, layer: int, hidden: NDArray[np.float32]) -> Callable[[], Tensor]:
        """One layer's shared expert for these rows."""
        ffn = self.head.weights.layers[layer].ffn
        assert isinstance(ffn, MoeWeights)
        return partial(ffn.shared.forward, torch.from_numpy(hidden))

    # One worker.

    def held(self, worker: RunningWorker, turn: int) -> tuple[int, tuple[int, ...]]:
        """A layer, and experts of it that were not read for a while first."""
        experts = self.plan.experts_of(worker.name)
        layer = self.layer(turn)
        return layer, rotated(experts[layer], turn * EXPERTS)

    def same(self, experts: Sequence[int]) -> NDArray[np.int32]:
        """One row that chooses `experts`."""
        return same_experts(self.shape.top_k, experts, 1)

    def request(
        self, layer: int, ids: NDArray[np.int32], hidden: NDArray[np.float32] | None = None
    ) -> ForwardRequest:
        rows = _rows(ids, self.shape.hidden_size, hidden)
        return ForwardRequest(next(_request_ids), 0, self.plan.epoch, layer, rows)

    # All that the plan has, as the model asks for it.

    def run(
        self,
        layer: int,
        ids: NDArray[np.int32],
        hidden: NDArray[np.float32] | None = None,
        meanwhile: Callable[[], Tensor] | None = None,
    ) -> None:
        """The dispatcher's calls for a layer's rows."""
        asked = self.dispatcher.ask(layer, _rows(ids, self.shape.hidden_size, hidden))
        if meanwhile is not None:
            meanwhile()
        self.dispatcher.collect(asked)

    def dispatch(self, layer: int, experts: Sequence[int]) -> None:
        """The same for one row that chooses `experts`."""
        self.run(layer, self.same(experts))

    def dispatch_cpu_s(self, asked: Sequence[RunningWorker], rows: int = 1) -> float:
        """CPU seconds of this thread in a layer of which every row needs an expert of each worker asked."""
        found = []
        for turn in range(self.repeats):
            layer = self.layer(turn)
            self.head_work(turn)
            experts = [self.held(worker, turn)[1][0] for worker in asked]
            ids = same_experts(self.shape.top_k, experts, rows)
            started = time.thread_time()
            self.run(layer, ids)
            found.append(time.thread_time() - started)
        return mean(found)


def reply_of(worker: RunningWorker) -> ForwardReply:
    """The next one.

    Raises:
        RuntimeError: none within 30 s, or a refusal.
    """
    reply = worker.client.wait(30.0)
    if not isinstance(reply, ForwardReply):
        raise RuntimeError(f"worker {worker.name}: no answer but {reply}")
    return reply


def _forward(store: ExpertStore, layer: int, experts: Sequence[int]) -> None:
    store.forward(layer, _rows(same_experts(store.top_k, experts, 1), store.hidden_size))


def _rows(ids: NDArray[np.int32], hidden_size: int, hidden: NDArray[np.float32] | None = None) -> ExpertRows:
    """Rows, of ones where none are given, that choose `ids`."""
    if hidden is None:
        hidden = np.ones((len(ids), hidden_size), np.float32)
    weights = np.full(ids.shape, 0.125, np.float32)
    return ExpertRows(hidden, ids, weights, np.full(len(ids), _EXPONENT, np.int32))
