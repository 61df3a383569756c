"""Microbenchmarks: what each process and link can do, as numbers that a cluster file states.

None of them runs a generation. Every probe reads other weights than the last did, so that caches are as cold
as they are in a step. What a prompt does is probed with a chunk's rows, each choosing its experts by lot. The
mean of a step is the sum of its parts' means, but its median is not the sum of their medians: all figures are
means over repetitions, a tenth of them left out at either end.
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

from benchmarks.fidelity.figures import FanOut, HeadProbe, LinkProbe, Probes, ProcessProbe, TogetherProbe
from benchmarks.fidelity.processes import RunningWorker
from benchmarks.fidelity.rows import (
    CHUNK_ROWS,
    chunk_ids,
    fan_out_ids,
    hidden_rows,
    rotated,
    same_experts,
)
from orchestrator.dispatch import Dispatcher
from orchestrator.model.attention import SequenceSlice
from orchestrator.model.moe import MoeWeights
from orchestrator.model.mtp import DraftRequest, MtpDrafter
from orchestrator.model.step35 import Step35Model
from orchestrator.sampling import Sampler
from placement.model_shape import ModelShape
from placement.plan import LOCAL_WORKER, Plan
from transport.messages import ForwardReply, ForwardRequest
from workers import kernels
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
        _forward(self.store, layer, self.store.experts[layer][-self.store.top_k :])
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
        layer that asks nobody is the head's. Elsewhere its arithmetic is that of shared experts alone.
        """
        asks = self.plan.local_worker is not None
        experts_of = self.plan.experts_of(LOCAL_WORKER) if asks else self.store.experts
        ask = self._dispatch if asks else self._local
        most = min(self.shape.top_k, *map(len, experts_of.values()))
        few = max(1, most // 4)
        seconds: dict[int, list[float]] = {few: [], most: []}
        chunks, pairs = [], 0
        for turn in range(self.repeats):
            for index, (experts, found) in enumerate(seconds.items()):
                # Not the same layer twice in turn: what was just read would be warm, and a read look cheap.
                layer = self.shape.moe_layers[(2 * turn + index) % self.shape.num_moe_layers]
                held = rotated(experts_of[layer], turn * most)
                found.append(_timed(partial(ask, layer, held[:experts])))
            if turn % SLOW_SHARE == 0:
                layer = self._layer(turn // SLOW_SHARE)
                hidden = hidden_rows(self.shape, CHUNK_ROWS, turn)
                if asks:
                    ids = chunk_ids(self.shape, experts_of[layer], turn)
                    pairs += int(np.count_nonzero(ids >= 0))
                    chunks.append(_timed(partial(self._run, layer, ids, hidden[: len(ids)])))
                else:
                    chunks.append(_timed(self._shared_expert(layer, hidden)))
        read_s = (_mean(seconds[most]) - _mean(seconds[few])) / (most - few)
        dispatch_s = self._dispatch_cpu_s(()) if asks else 0.0
        request_s = max(0.0, _mean(seconds[few]) - few * read_s - dispatch_s)
        if not asks:
            flops_of_expert = self.shape.expert_parameters / self.shape.shared_expert_parameters
            return ProcessProbe(read_s, _mean(chunks) / CHUNK_ROWS * flops_of_expert, request_s)
        nobody_s = self._dispatch_cpu_s((), CHUNK_ROWS)
        pair_s = max(0.0, _mean(chunks) - nobody_s - request_s) * len(chunks) / pairs
        return ProcessProbe(read_s, pair_s, request_s)

    def _shared_expert(self, layer: int, hidden: NDArray[np.float32]) -> Callable[[], Tensor]:
        """One layer's shared expert for these rows."""
        ffn = self.head.weights.layers[layer].ffn
        assert isinstance(ffn, MoeWeights)
        return partial(ffn.shared.forward, torch.from_numpy(hidden))

    def _local(self, layer: int, experts: Sequence[int]) -> None:
        _forward(self.store, layer, experts)

    def _head_work(self, turn: int) -> None:
        """What lies between two requests of a step: workers fall asleep, this process's caches turn cold."""
        layer = self._layer(turn)
        self._local(layer, self.store.experts[layer][:EXPERTS])

    def _layer(self, turn: int) -> int:
        return self.shape.moe_layers[turn % self.shape.num_moe_layers]

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
                compute_s = self._exchange(worker, layer, self._same(held[:experts]))
                walls[experts].append(time.perf_counter() - started)
                computes[experts].append(compute_s)
                own_s += compute_s
                software.append(time.thread_time() - started_cpu)
        requests_s = max(0.0, (_cpu_s(worker.pid) - before_s - own_s) / (2 * self.repeats))
        read_s = (_mean(computes[EXPERTS]) - _mean(computes[1])) / (EXPERTS - 1)
        kernel_s = max(0.0, _mean(computes[1]) - read_s)

        chunk_s, chunk_wait_s, chunk_rows, pairs = [], [], [], 0
        for turn in range(self._slow_turns):
            layer, held = self._held(worker, turn)
            self._head_work(turn)
            ids = chunk_ids(self.shape, held, turn)
            request = self._request(layer, ids, hidden_rows(self.shape, len(ids), turn))
            started, started_cpu = time.perf_counter(), time.thread_time()
            worker.client.send(request)
            compute_s = _reply(worker).compute_s
            wall_s, cpu_s = time.perf_counter() - started, time.thread_time() - started_cpu
            chunk_s.append(compute_s)
            chunk_wait_s.append(wall_s - compute_s - cpu_s)
            chunk_rows.append(len(ids))
            pairs += int(np.count_nonzero(ids >= 0))
        waits = [w - c for w, c in zip(walls[EXPERTS], computes[EXPERTS], strict=True)]
        wait_s = _mean(waits) - _mean(software)
        row_s = max(1e-9, (_mean(chunk_wait_s) - wait_s) / (_mean(chunk_rows) - 1))
        pair_s = max(0.0, _mean(chunk_s) - kernel_s) * len(chunk_s) / pairs
        return (
            ProcessProbe(read_s, pair_s, kernel_s + requests_s),
            LinkProbe(wait_s - requests_s - row_s, row_s),
        )

    def _held(self, worker: RunningWorker, turn: int) -> tuple[int, tuple[int, ...]]:
        """A layer, and experts of it that were not read for a while first."""
        experts = self.plan.experts_of(worker.name)
        layer = self._layer(turn)
        return layer, rotated(experts[layer], turn * EXPERTS)

    def _same(self, experts: Sequence[int]) -> NDArray[np.int32]:
        return same_experts(self.shape.top_k, experts, 1)

    def _exchange(self, worker: RunningWorker, layer: int, ids: NDArray[np.int32]) -> float:
        """The worker's own seconds for such a request."""
        worker.client.send(self._request(layer, ids))
        return _reply(worker).compute_s

    def _request(
        self, layer: int, ids: NDArray[np.int32], hidden: NDArray[np.float32] | None = None
    ) -> ForwardRequest:
        if hidden is None:
            hidden = np.ones((len(ids), self.shape.hidden_size), np.float32)
        return ForwardRequest(
            next(_request_ids),
            self.plan.epoch,
            layer,
            hidden,
            ids,
            np.full(ids.shape, 0.125, np.float32),
            np.full(len(ids), _EXPONENT, np.int32),
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
            fan_outs=(self._fan_out(4 * self.repeats, 1), self._fan_out(self._slow_turns, CHUNK_ROWS))
            if any(worker.is_local for worker in self.workers)
            else (),
        )

    def _fan_out(self, turns: int, rows: int) -> FanOut:
        """The dispatcher's own call with the shared expert meanwhile, as a step makes it."""
        found = []
        for turn in range(turns):
            layer, ids = fan_out_ids(self.shape, self.plan, turn, rows)
            hidden = hidden_rows(self.shape, rows, turn)
            self._head_work(turn)
            found.append(_timed(partial(self._run, layer, ids, hidden, self._shared_expert(layer, hidden))))
        return FanOut(rows, turns, fmean(found))

    def _dispatch(self, layer: int, experts: Sequence[int]) -> None:
        """One row that chooses `experts`, as the model asks for them."""
        self._run(layer, self._same(experts))

    @property
    def _slow_turns(self) -> int:
        return -(-self.repeats // SLOW_SHARE)

    def _run(
        self,
        layer: int,
        ids: NDArray[np.int32],
        rows: NDArray[np.float32] | None = None,
        meanwhile: Callable[[], Tensor] | None = None,
    ) -> None:
        weights = torch.full(ids.shape, 0.125)
        exponents = torch.full((len(ids),), _EXPONENT, dtype=torch.int32)
        hidden = torch.ones(len(ids), self.shape.hidden_size) if rows is None else torch.from_numpy(rows)
        run = partial(self.dispatcher.run, layer, hidden, torch.from_numpy(ids), weights, exponents)
        run(meanwhile or (lambda: hidden))

    def _at_once(self, workers: Sequence[RunningWorker], requests: int, *, in_head: bool) -> list[float]:
        """Seconds each of `workers`, and this process if asked to, takes for one of so many requests."""
        messages = []
        for turn in range(requests):
            for worker in workers:
                layer, held = self._held(worker, turn)
                messages.append((worker, self._request(layer, self._same(held[:EXPERTS]))))
        for worker, message in messages:
            worker.client.send(message)
        own_s = 0.0
        if in_head:
            for turn in range(requests):
                layer = self._layer(turn)
                held = self.store.experts[layer]
                own_s += _timed(partial(self._local, layer, held[:EXPERTS]))
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
        rows_s = self._dispatch_cpu_s((), CHUNK_ROWS)
        message_s = max(0.0, all_s - nobody_s) / len(self.workers) if self.workers else 0.0
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
            dispatch_row_s=max(0.0, rows_s - nobody_s) / (CHUNK_ROWS - 1),
            message_s=message_s,
            message_row_s=self._message_row_s(rows_s, message_s) if self.workers else 0.0,
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
            layer = self._layer(turn)
            self._head_work(turn)
            experts = [self._held(worker, turn)[1][0] for worker in asked]
            ids = same_experts(self.shape.top_k, experts, rows)
            started = time.thread_time()
            self._run(layer, ids)
            found.append(time.thread_time() - started)
        return _mean(found)

    def _message_row_s(self, rows_s: float, message_s: float) -> float:
        """CPU seconds of this thread for each row it sends to a worker, of a chunk that asks all of them."""
        found, sent = [], 0
        for turn in range(self._slow_turns):
            layer = self._layer(turn)
            held = [self._held(worker, turn)[1] for worker in self.workers]
            ids = chunk_ids(self.shape, sum(held, ()), turn)
            sent += sum(int(np.isin(ids, experts).any(axis=1).sum()) for experts in held)
            hidden = hidden_rows(self.shape, len(ids), turn)
            started = time.thread_time()
            self._run(layer, ids, hidden)
            found.append(time.thread_time() - started)
        extra_s = _mean(found) - rows_s - len(self.workers) * message_s
        return max(0.0, extra_s) * len(found) / sent


def _forward(store: ExpertStore, layer: int, experts: Sequence[int]) -> None:
    ids = torch.from_numpy(same_experts(store.top_k, experts, 1))
    store.forward(
        layer,
        torch.ones(1, store.hidden_size),
        ids,
        torch.full(ids.shape, 0.125),
        torch.full((1,), _EXPONENT, dtype=torch.int32),
    )


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
