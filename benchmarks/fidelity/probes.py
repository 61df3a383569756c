"""Microbenchmarks: what each process and link can do, as numbers that a cluster file states.

None of them runs a generation. Every probe reads other weights than the last did, so that caches are as cold
as they are in a step. The mean of a step is the sum of its parts' means, but its median is not the sum of
their medians: all figures are means over repetitions, a tenth of them left out at either end.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.fidelity.figures import HeadProbe, LinkProbe, Probes, ProcessProbe, TogetherProbe
from benchmarks.fidelity.processes import RunningWorker
from orchestrator.dispatch import Dispatcher
from orchestrator.model.attention import SequenceSlice
from orchestrator.model.mtp import DraftRequest, MtpDrafter
from orchestrator.model.step35 import Step35Model
from orchestrator.sampling import Sampler
from placement.model_shape import ModelShape
from placement.plan import LOCAL_WORKER, Plan
from transport.messages import ForwardReply, ForwardRequest
from workers import kernels
from workers.store import ExpertStore

CHUNK_ROWS = 256
SLOW_SHARE = 5
"""One repetition in so many also measures what takes as long as a chunk."""
EXPERTS = 4
"""Distinct experts of a request, where one is compared with several."""
_EXPONENT = -24
_request_ids = count(1)


@dataclass(frozen=True, slots=True)
class ChunkPairs:
    """A request as a prompt's chunk makes it, but for fewer experts.

    Attributes:
        experts: distinct.
        experts_per_row: as many as a row of a chunk finds in this process.
        rows: so many that each expert gets its share of `CHUNK_ROWS`.
    """

    experts: int
    experts_per_row: int
    rows: int

    @classmethod
    def of(cls, shape: ModelShape, held: int | None) -> ChunkPairs:
        """Of a process that holds so many experts of a layer, None for all."""
        held = shape.num_experts if held is None else held
        experts = min(held, shape.top_k)
        per_row = max(1, shape.top_k * held // shape.num_experts)
        return cls(experts, per_row, CHUNK_ROWS * shape.top_k // shape.num_experts * experts // per_row)

    def pair_s(self, seconds: float, request_s: float) -> float:
        """Of one pair, from the request's time and what it takes without any."""
        return max(seconds - request_s, 0.0) / (self.rows * self.experts_per_row)


@dataclass(slots=True)
class UncountedExperts:
    """An `ExpertRunner` whose sums are zero and whose time is left out.

    It reads as many experts as a token does in each layer all the same, or the head's own code, caches and
    weights would be warm where in a step megabytes of experts have just passed.
    """

    store: ExpertStore
    read_s: float = 0.0

    def run(
        self,
        layer: int,
        hidden: Tensor,
        expert_ids: Tensor,
        weights: Tensor,
        scale_exponents: Tensor,
        while_waiting: Callable[[], Tensor],
    ) -> tuple[Tensor, Tensor]:
        started = time.perf_counter()
        _forward(self.store, layer, self.store.experts[layer][-self.store.top_k :], 1)
        self.read_s += time.perf_counter() - started
        return torch.zeros_like(hidden), while_waiting()

    def timed(self, action: Callable[[], object]) -> float:
        """Seconds of `action` without those of the experts it ran."""
        before_s = self.read_s
        return _timed(action) - (self.read_s - before_s)


@dataclass(frozen=True, slots=True)
class Prober:
    """Probes one setup as often as asked.

    Args:
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

    def probe(self) -> Probes:
        workers, links = {}, {}
        for worker in self.workers:
            workers[worker.name], links[worker.name] = self._worker(worker)
        return Probes(
            head_process=self._process(),
            head=self._head(),
            workers=workers,
            links=links,
            together=self._together() if self.workers else None,
        )

    # This process.

    def _process(self) -> ProcessProbe:
        """As many experts as a token chooses beside a quarter of them: threads make the first one dearer.

        Where the plan gives this process experts, the dispatcher asks for them, as in a step; its time in a
        layer that asks nobody is `HeadProbe.dispatch_s`.
        """
        asks = self.plan.local_worker is not None
        experts_of = self.plan.experts_of(LOCAL_WORKER) if asks else self.store.experts
        ask = self._dispatch if asks else self._local
        most = min(self.shape.top_k, *map(len, experts_of.values()))
        few = max(1, most // 4)
        seconds: dict[int, list[float]] = {few: [], most: []}
        many = []
        pairs = ChunkPairs.of(self.shape, len(experts_of[self.shape.moe_layers[0]]) if asks else None)
        for turn in range(self.repeats):
            for index, (experts, found) in enumerate(seconds.items()):
                # Not the same layer twice in turn: what was just read would be warm, and a read look cheap.
                layer = self.shape.moe_layers[(2 * turn + index) % self.shape.num_moe_layers]
                held = _rotated(experts_of[layer], turn * most)
                found.append(_timed(partial(ask, layer, held[:experts])))
            if turn % SLOW_SHARE == 0:
                chosen = self.store.experts[layer][: pairs.experts]
                many.append(_timed(partial(self._local, layer, chosen, pairs.rows, pairs.experts_per_row)))
        read_s = (_mean(seconds[most]) - _mean(seconds[few])) / (most - few)
        dispatch_s = self._dispatch_cpu_s(()) if asks else 0.0
        request_s = max(0.0, _mean(seconds[few]) - few * read_s - dispatch_s)
        return ProcessProbe(read_s, pairs.pair_s(_mean(many), request_s), request_s)

    def _local(
        self, layer: int, experts: Sequence[int], rows: int = 1, experts_per_row: int | None = None
    ) -> None:
        _forward(self.store, layer, experts, rows, experts_per_row)

    def _head_work(self, turn: int) -> None:
        """What lies between two requests of a step: workers fall asleep, this process's caches turn cold."""
        layer = self.shape.moe_layers[turn % self.shape.num_moe_layers]
        self._local(layer, self.store.experts[layer][:EXPERTS], 1)

    # One worker, the others idle.

    def _worker(self, worker: RunningWorker) -> tuple[ProcessProbe, LinkProbe]:
        walls: dict[int, list[float]] = {1: [], EXPERTS: []}
        computes: dict[int, list[float]] = {1: [], EXPERTS: []}
        before_s, own_s, software = _cpu_s(worker.pid), 0.0, []
        for turn in range(self.repeats):
            for index, experts in enumerate((1, EXPERTS)):
                # Not the same layer twice in turn: what was just read would be warm, and a read look cheap.
                layer, held = self._held(worker, 2 * turn + index)
                self._head_work(turn)
                started, started_cpu = time.perf_counter(), time.thread_time()
                compute_s = self._exchange(worker, layer, held[:experts], 1)
                walls[experts].append(time.perf_counter() - started)
                computes[experts].append(compute_s)
                own_s += compute_s
                software.append(time.thread_time() - started_cpu)
        requests_s = max(0.0, (_cpu_s(worker.pid) - before_s - own_s) / (2 * self.repeats))
        read_s = (_mean(computes[EXPERTS]) - _mean(computes[1])) / (EXPERTS - 1)
        kernel_s = max(0.0, _mean(computes[1]) - read_s)

        pairs, many = ChunkPairs.of(self.shape, len(self._held(worker, 0)[1])), []
        for turn in range(-(-self.repeats // SLOW_SHARE)):
            layer, held = self._held(worker, turn)
            many.append(
                self._exchange(worker, layer, held[: pairs.experts], pairs.rows, pairs.experts_per_row)
            )
        waits = [w - c for w, c in zip(walls[EXPERTS], computes[EXPERTS], strict=True)]
        row_s = self._row_s(worker)
        outside_s = requests_s + _mean(software) + row_s
        return (
            ProcessProbe(read_s, pairs.pair_s(_mean(many), kernel_s), kernel_s + requests_s),
            LinkProbe(_mean(waits) - outside_s, row_s),
        )

    def _row_s(self, worker: RunningWorker) -> float:
        """Rows without experts: what is left is their bytes, at both ends and on the way."""
        layer, _ = self._held(worker, 0)
        seconds: dict[int, list[float]] = {1: [], CHUNK_ROWS: []}
        for _ in range(4):
            for rows, found in seconds.items():
                started = time.perf_counter()
                compute_s = self._exchange(worker, layer, (), rows)
                found.append(time.perf_counter() - started - compute_s)
        return max(1e-9, (_mean(seconds[CHUNK_ROWS]) - _mean(seconds[1])) / (CHUNK_ROWS - 1))

    def _held(self, worker: RunningWorker, turn: int) -> tuple[int, tuple[int, ...]]:
        """A layer, and experts of it that were not read for a while first."""
        experts = self.plan.experts_of(worker.name)
        layer = self.shape.moe_layers[turn % self.shape.num_moe_layers]
        return layer, _rotated(experts[layer], turn * EXPERTS)

    def _exchange(
        self,
        worker: RunningWorker,
        layer: int,
        experts: Sequence[int],
        rows: int,
        experts_per_row: int | None = None,
    ) -> float:
        worker.client.send(self._request(layer, experts, rows, experts_per_row))
        return _reply(worker).compute_s

    def _request(
        self, layer: int, experts: Sequence[int], rows: int, experts_per_row: int | None = None
    ) -> ForwardRequest:
        ids = _ids(self.shape.top_k, experts, rows, experts_per_row)
        return ForwardRequest(
            next(_request_ids),
            self.plan.epoch,
            layer,
            np.ones((rows, self.shape.hidden_size), np.float32),
            ids,
            np.full(ids.shape, 0.125, np.float32),
            np.full(rows, _EXPONENT, np.int32),
        )

    # All at once.

    def _together(self) -> TogetherProbe:
        """Every process tells how long it computed, so that links do not count."""
        cores = len(os.sched_getaffinity(0))
        in_head = len(self.workers) < cores
        readers = self.workers[: cores - in_head]
        reading = [self._at_once(readers, 12, in_head=in_head) for _ in range(3)]
        return TogetherProbe(
            experts_per_s=_mean([float((EXPERTS / np.array(seconds)).sum()) for seconds in reading]),
            cores=cores,
            fan_out_s=self._fan_out_s(),
            fan_out_experts=self.fan_out_experts,
        )

    @property
    def local_workers(self) -> list[RunningWorker]:
        return [worker for worker in self.workers if worker.is_local]

    @property
    def fan_out_experts(self) -> int:
        return self.shape.top_k // max(1, len(self.local_workers))

    def _fan_out_s(self) -> float:
        """The dispatcher's own call, as a step makes it."""
        if not self.local_workers:
            return 0.0
        found = []
        for turn in range(2 * self.repeats):
            layer = self.shape.moe_layers[turn % self.shape.num_moe_layers]
            self._head_work(turn)
            chosen = [self._held(worker, turn)[1][: self.fan_out_experts] for worker in self.local_workers]
            one = self.store.experts[layer][-1:]
            row = torch.ones(1, self.shape.hidden_size)

            def meanwhile(layer: int = layer, one: Sequence[int] = one, row: Tensor = row) -> Tensor:
                self._local(layer, one, 1)
                return row

            found.append(_timed(partial(self._dispatch, layer, sum(chosen, ()), meanwhile)))
        return _mean(found)

    def _dispatch(
        self,
        layer: int,
        experts: Sequence[int],
        meanwhile: Callable[[], Tensor] | None = None,
        rows: int = 1,
    ) -> None:
        """`rows` rows that all choose `experts`, as the model asks for them."""
        ids = np.repeat(_ids(self.shape.top_k, experts, 1), rows, axis=0)
        weights, exponents = torch.full(ids.shape, 0.125), torch.full((rows,), _EXPONENT, dtype=torch.int32)
        hidden = torch.ones(rows, self.shape.hidden_size)
        run = partial(self.dispatcher.run, layer, hidden, torch.from_numpy(ids), weights, exponents)
        run(meanwhile or (lambda: hidden))

    def _at_once(self, workers: Sequence[RunningWorker], requests: int, *, in_head: bool) -> list[float]:
        """Seconds each of `workers`, and this process if asked to, takes for one of so many requests."""
        messages = []
        for turn in range(requests):
            for worker in workers:
                layer, held = self._held(worker, turn)
                messages.append((worker, self._request(layer, held[:EXPERTS], 1)))
        for worker, message in messages:
            worker.client.send(message)
        own_s = 0.0
        if in_head:
            for turn in range(requests):
                layer = self.shape.moe_layers[turn % self.shape.num_moe_layers]
                held = self.store.experts[layer]
                own_s += _timed(lambda: self._local(layer, held[:EXPERTS], 1))  # noqa: B023
        compute_s = {worker.name: 0.0 for worker in workers}
        for worker, _ in messages:
            compute_s[worker.name] += _reply(worker).compute_s
        return [seconds / requests for seconds in (*compute_s.values(), *([own_s] if in_head else []))]

    # The head.

    def _head(self) -> HeadProbe:
        head = self.head
        cache = head.new_cache()
        prompt = torch.arange(self.context) % head.config.vocab_size
        hidden = head.forward(prompt, [SequenceSlice(cache, self.context)])
        drafter = MtpDrafter(head, len(head.weights.mtp))
        state, tokens = drafter.new_state(), [*prompt.tolist(), 1]
        sampler = Sampler(1.0, 0)
        drafter.draft([DraftRequest(state, hidden, tokens, drafter.num_layers, sampler.draft)])

        token, verify, chunk, logits, drafts, attention = [], [], [], [], [], []
        verify_rows = 1 + drafter.num_layers
        for turn in range(self.repeats):
            row = torch.tensor([turn])
            token.append(self.experts.timed(lambda: head.forward(row, [SequenceSlice(cache, 1)])))  # noqa: B023
            cache.rollback(self.context)
            rows, together = prompt[:verify_rows], [SequenceSlice(cache, verify_rows)]
            verify.append(self.experts.timed(lambda: head.forward(rows, together)))  # noqa: B023
            cache.rollback(self.context)
            logits.append(_timed(lambda: sampler.choose(head.logits(hidden[-1:])[0])))
            tokens.append(turn)
            request = DraftRequest(state, hidden[-1:], tokens, drafter.num_layers, sampler.draft)
            drafts.append(_timed(lambda: drafter.draft([request])))  # noqa: B023
            if turn % SLOW_SHARE == 0:
                fresh = [SequenceSlice(head.new_cache(), CHUNK_ROWS)]
                chunk.append(self.experts.timed(lambda: head.forward(prompt[:CHUNK_ROWS], fresh)))  # noqa: B023
                attention.append(_timed(self._attention))
        nobody_s, all_s = self._dispatch_cpu_s(()), self._dispatch_cpu_s(self.workers)
        batch_dispatch_s = self._dispatch_cpu_s(self.workers, verify_rows) - all_s
        return HeadProbe(
            context=self.context,
            verify_rows=verify_rows,
            chunk_rows=CHUNK_ROWS,
            token_s=_mean(token),
            verify_s=_mean(verify),
            chunk_s=_mean(chunk),
            logits_s=_mean(logits),
            drafts_s=_mean(drafts),
            attention_s=_mean(attention),
            dispatch_s=nobody_s,
            message_s=max(0.0, all_s - nobody_s) / len(self.workers) if self.workers else 0.0,
            batch_dispatch_s=max(0.0, batch_dispatch_s),
        )

    def _attention(self) -> None:
        full = self.head.weights.layers[0].attention
        heads, kv_heads, head_dim = full.num_heads, full.num_kv_heads, full.head_dim
        new = torch.ones(CHUNK_ROWS, kv_heads, head_dim)
        old = torch.ones(self.context, kv_heads, head_dim)
        queries = torch.ones(CHUNK_ROWS, heads, head_dim)
        kernels.attention(queries, new, new, old, old, self.context, 0, full.scale)

    def _dispatch_cpu_s(self, asked: Sequence[RunningWorker], rows: int = 1) -> float:
        """CPU seconds of this thread in a layer of which every row needs an expert of each worker asked."""
        found = []
        for turn in range(self.repeats):
            layer = self.shape.moe_layers[turn % self.shape.num_moe_layers]
            self._head_work(turn)
            experts = [self._held(worker, turn)[1][0] for worker in asked]
            started = time.thread_time()
            self._dispatch(layer, experts, rows=rows)
            found.append(time.thread_time() - started)
        return _mean(found)


def _rotated(experts: tuple[int, ...], turn: int) -> tuple[int, ...]:
    """Those not read for a while first."""
    start = turn % len(experts)
    return experts[start:] + experts[:start]


def _forward(
    store: ExpertStore,
    layer: int,
    experts: Sequence[int],
    rows: int,
    experts_per_row: int | None = None,
) -> None:
    ids = torch.from_numpy(_ids(store.top_k, experts, rows, experts_per_row))
    store.forward(
        layer,
        torch.ones(rows, store.hidden_size),
        ids,
        torch.full(ids.shape, 0.125),
        torch.full((rows,), _EXPONENT, dtype=torch.int32),
    )


def _ids(
    top_k: int, experts: Sequence[int], rows: int, experts_per_row: int | None = None
) -> NDArray[np.int32]:
    """Each row chooses all the experts, or so many of them in turn."""
    width = len(experts) if experts_per_row is None else experts_per_row
    ids = np.full((rows, top_k), -1, np.int32)
    if width:
        chosen = np.arange(rows * width).reshape(rows, width) % len(experts)
        ids[:, :width] = np.array(experts, np.int32)[chosen]
    return ids


def _reply(worker: RunningWorker) -> ForwardReply:
    reply = worker.client.wait(30.0)
    if not isinstance(reply, ForwardReply):
        raise RuntimeError(f"worker {worker.name}: no answer but {reply}")
    return reply


def _mean(seconds: Sequence[float]) -> float:
    """Without the tenth at either end, which other programs make."""
    left_out = len(seconds) // 10
    return fmean(sorted(seconds)[left_out : len(seconds) - left_out])


def _timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _cpu_s(pid: int) -> float:
    """CPU time of all threads of a process, to the nanosecond (Linux's schedstat)."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) * 1e-9
