"""Microbenchmarks: what each process and link can do, as numbers that a cluster file states.

None of them runs a generation. Every probe reads other weights than the last did, so that caches are as cold
as they are in a step. All figures are medians over repetitions.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.fidelity.processes import RunningWorker
from orchestrator.dispatch import Dispatcher
from orchestrator.model.attention import SequenceSlice
from orchestrator.model.mtp import DraftRequest, MtpDrafter
from orchestrator.model.step35 import Step35Model
from orchestrator.sampling import Sampler
from placement.model_shape import ModelShape
from placement.plan import Plan
from transport.messages import ForwardReply, ForwardRequest
from workers import kernels
from workers.store import ExpertStore

REPEATS = 20
CHUNK_ROWS = 256
EXPERTS = 4
"""Distinct experts of a request, where one is compared with several."""
_EXPONENT = -24
_request_ids = count(1)


@dataclass(frozen=True, slots=True)
class ProcessProbe:
    """One process computing experts.

    Attributes:
        read_s: of one more expert for the same row: its bytes at the memory's rate.
        pair_s: of one (row, expert) pair among `CHUNK_ROWS` of them: its FLOPs at the arithmetic rate.
        request_s: of a request beyond its experts: its messages, one kernel call.
    """

    read_s: float
    pair_s: float
    request_s: float


@dataclass(frozen=True, slots=True)
class LinkProbe:
    """A worker as seen from the head.

    Attributes:
        round_trip_s: of one row, without what either process computes and without its bytes' time.
        row_s: of one row more: both ways.
    """

    round_trip_s: float
    row_s: float


@dataclass(frozen=True, slots=True)
class TogetherProbe:
    """All processes at once.

    Attributes:
        experts_per_s: read by as many processes as there are cores.
        cores: that this process may use.
        fan_out_s: of a layer that asks every worker on this machine for `fan_out_experts` experts each, while
            this process computes one: 0 where there is no such worker.
    """

    experts_per_s: float
    cores: int
    fan_out_s: float
    fan_out_experts: int


@dataclass(frozen=True, slots=True)
class HeadProbe:
    """The head without experts, seconds.

    Attributes:
        token_s, chunk_s: forward passes of one row behind `context` others, and of `chunk_rows` behind none.
        logits_s: norm, lm_head and sampling of one row.
        drafts_s: all MTP layers behind one new row.
        attention_s: one call of the attention kernel, `chunk_rows` rows behind `context` others.
        dispatch_s, message_s: the dispatcher's CPU time in a layer that asks nobody, and for each worker.
    """

    context: int
    chunk_rows: int
    token_s: float
    chunk_s: float
    logits_s: float
    drafts_s: float
    attention_s: float
    dispatch_s: float
    message_s: float


@dataclass(frozen=True, slots=True)
class Probes:
    """One round's numbers of one setup; `workers` and `links` by worker name."""

    head_process: ProcessProbe
    head: HeadProbe
    workers: dict[str, ProcessProbe]
    links: dict[str, LinkProbe]
    together: TogetherProbe | None


class NoExperts:
    """An `ExpertRunner` whose sums are zero."""

    def run(
        self,
        layer: int,
        hidden: Tensor,
        expert_ids: Tensor,
        weights: Tensor,
        scale_exponents: Tensor,
        while_waiting: Callable[[], Tensor],
    ) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(hidden), while_waiting()


@dataclass(frozen=True, slots=True)
class Prober:
    """Probes one setup as often as asked.

    Args:
        store: some experts of every layer, for this process to compute.
        head: with `NoExperts`.
    """

    shape: ModelShape
    plan: Plan
    store: ExpertStore
    head: Step35Model
    dispatcher: Dispatcher
    workers: Sequence[RunningWorker]
    context: int

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
        """As many experts as a token chooses beside a quarter of them: threads make the first one dearer."""
        few, most = self.shape.top_k // 4, self.shape.top_k
        seconds: dict[int, list[float]] = {few: [], most: []}
        many = []
        for turn in range(REPEATS):
            layer = self.shape.moe_layers[turn % self.shape.num_moe_layers]
            held = self.store.experts[layer]
            for experts, found in seconds.items():
                found.append(_timed(partial(self._local, layer, held[-experts:], 1)))
            if turn % 4 == 0:
                many.append(_timed(partial(self._local, layer, held[:EXPERTS], CHUNK_ROWS)))
        read_s = (median(seconds[most]) - median(seconds[few])) / (most - few)
        request_s = max(0.0, median(seconds[few]) - few * read_s)
        return ProcessProbe(read_s, median(many) / CHUNK_ROWS, request_s)

    def _local(self, layer: int, experts: Sequence[int], rows: int) -> None:
        ids = torch.from_numpy(_ids(self.shape, experts, rows))
        self.store.forward(
            layer,
            torch.ones(rows, self.shape.hidden_size),
            ids,
            torch.full(ids.shape, 0.125),
            torch.full((rows,), _EXPONENT, dtype=torch.int32),
        )

    def _head_work(self, turn: int) -> None:
        """What lies between two requests of a step: workers fall asleep, this process's caches turn cold."""
        layer = self.shape.moe_layers[turn % self.shape.num_moe_layers]
        self._local(layer, self.store.experts[layer][:EXPERTS], 1)

    # One worker, the others idle.

    def _worker(self, worker: RunningWorker) -> tuple[ProcessProbe, LinkProbe]:
        walls: dict[int, list[float]] = {1: [], EXPERTS: []}
        computes: dict[int, list[float]] = {1: [], EXPERTS: []}
        before_s, own_s, software = _cpu_s(worker.pid), 0.0, []
        for turn in range(REPEATS):
            for experts in (1, EXPERTS):
                layer, held = self._held(worker, turn)
                self._head_work(turn)
                started, started_cpu = time.perf_counter(), time.thread_time()
                compute_s = self._exchange(worker, layer, held[:experts], 1)
                walls[experts].append(time.perf_counter() - started)
                computes[experts].append(compute_s)
                own_s += compute_s
                software.append(time.thread_time() - started_cpu)
        requests_s = max(0.0, (_cpu_s(worker.pid) - before_s - own_s) / (2 * REPEATS))
        read_s = (median(computes[EXPERTS]) - median(computes[1])) / (EXPERTS - 1)
        kernel_s = max(0.0, median(computes[1]) - read_s)

        many = []
        for turn in range(3):
            layer, held = self._held(worker, turn)
            many.append(self._exchange(worker, layer, held[:EXPERTS], CHUNK_ROWS))
        waits = [w - c for w, c in zip(walls[EXPERTS], computes[EXPERTS], strict=True)]
        row_s = self._row_s(worker)
        outside_s = requests_s + median(software) + row_s
        return (
            ProcessProbe(read_s, median(many) / CHUNK_ROWS, kernel_s + requests_s),
            LinkProbe(median(waits) - outside_s, row_s),
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
        return max(1e-9, (median(seconds[CHUNK_ROWS]) - median(seconds[1])) / (CHUNK_ROWS - 1))

    def _held(self, worker: RunningWorker, turn: int) -> tuple[int, tuple[int, ...]]:
        """A layer, and experts of it that were not read for a while first."""
        experts = self.plan.experts_of(worker.name)
        layer = self.shape.moe_layers[turn % self.shape.num_moe_layers]
        held = experts[layer]
        start = turn * EXPERTS % len(held)
        return layer, held[start:] + held[:start]

    def _exchange(self, worker: RunningWorker, layer: int, experts: Sequence[int], rows: int) -> float:
        worker.client.send(self._request(layer, experts, rows))
        return _reply(worker).compute_s

    def _request(self, layer: int, experts: Sequence[int], rows: int) -> ForwardRequest:
        ids = _ids(self.shape, experts, rows)
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
            experts_per_s=median(float((EXPERTS / np.array(seconds)).sum()) for seconds in reading),
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
        for turn in range(2 * REPEATS):
            layer = self.shape.moe_layers[turn % self.shape.num_moe_layers]
            self._head_work(turn)
            chosen = [self._held(worker, turn)[1][: self.fan_out_experts] for worker in self.local_workers]
            one = self.store.experts[layer][-1:]
            row = torch.ones(1, self.shape.hidden_size)

            def meanwhile(layer: int = layer, one: Sequence[int] = one, row: Tensor = row) -> Tensor:
                self._local(layer, one, 1)
                return row

            found.append(_timed(partial(self._dispatch_row, layer, sum(chosen, ()), meanwhile)))
        return median(found)

    def _dispatch_row(self, layer: int, experts: Sequence[int], meanwhile: Callable[[], Tensor]) -> None:
        ids = _ids(self.shape, experts, 1)
        weights, exponents = torch.full(ids.shape, 0.125), torch.full((1,), _EXPONENT, dtype=torch.int32)
        row = torch.ones(1, self.shape.hidden_size)
        self.dispatcher.run(layer, row, torch.from_numpy(ids), weights, exponents, meanwhile)

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

        token, chunk, logits, drafts, attention = [], [], [], [], []
        for turn in range(REPEATS):
            row = torch.tensor([turn])
            token.append(_timed(lambda: head.forward(row, [SequenceSlice(cache, 1)])))  # noqa: B023
            cache.rollback(self.context)
            logits.append(_timed(lambda: sampler.choose(head.logits(hidden[-1:])[0])))
            tokens.append(turn)
            request = DraftRequest(state, hidden[-1:], tokens, drafter.num_layers, sampler.draft)
            drafts.append(_timed(lambda: drafter.draft([request])))  # noqa: B023
            if turn % 4 == 0:
                fresh = [SequenceSlice(head.new_cache(), CHUNK_ROWS)]
                chunk.append(_timed(lambda: head.forward(prompt[:CHUNK_ROWS], fresh)))  # noqa: B023
                attention.append(_timed(self._attention))
        dispatch_s, message_s = self._dispatch()
        return HeadProbe(
            context=self.context,
            chunk_rows=CHUNK_ROWS,
            token_s=median(token),
            chunk_s=median(chunk),
            logits_s=median(logits),
            drafts_s=median(drafts),
            attention_s=median(attention),
            dispatch_s=dispatch_s,
            message_s=message_s,
        )

    def _attention(self) -> None:
        full = self.head.weights.layers[0].attention
        heads, kv_heads, head_dim = full.num_heads, full.num_kv_heads, full.head_dim
        new = torch.ones(CHUNK_ROWS, kv_heads, head_dim)
        old = torch.ones(self.context, kv_heads, head_dim)
        queries = torch.ones(CHUNK_ROWS, heads, head_dim)
        kernels.attention(queries, new, new, old, old, self.context, 0, full.scale)

    def _dispatch(self) -> tuple[float, float]:
        """CPU seconds of this thread in a layer that asks nobody, and those each worker adds."""
        if not self.workers:
            return self._dispatch_cpu_s(()), 0.0
        nobody_s, all_s = self._dispatch_cpu_s(()), self._dispatch_cpu_s(self.workers)
        return nobody_s, max(0.0, (all_s - nobody_s) / len(self.workers))

    def _dispatch_cpu_s(self, asked: Sequence[RunningWorker]) -> float:
        found = []
        for turn in range(REPEATS):
            layer = self.shape.moe_layers[turn % self.shape.num_moe_layers]
            self._local(
                layer, self.store.experts[layer][:EXPERTS], 1
            )  # so that this process's caches are cold
            experts = [self._held(worker, turn)[1][0] for worker in asked]
            row = torch.ones(1, self.shape.hidden_size)
            started = time.thread_time()
            self._dispatch_row(layer, experts, lambda: row)  # noqa: B023
            found.append(time.thread_time() - started)
        return median(found)


def _ids(shape: ModelShape, experts: Sequence[int], rows: int) -> NDArray[np.int32]:
    """One row asks for all the experts, each of several rows for one of them, by lot."""
    ids = np.full((rows, shape.top_k), -1, np.int32)
    if rows == 1:
        ids[0, : len(experts)] = experts
    elif experts:
        ids[:, 0] = np.random.default_rng(rows).choice(np.array(experts), rows)
    return ids


def _reply(worker: RunningWorker) -> ForwardReply:
    reply = worker.client.wait(30.0)
    if not isinstance(reply, ForwardReply):
        raise RuntimeError(f"worker {worker.name}: no answer but {reply}")
    return reply


def _timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _cpu_s(pid: int) -> float:
    """CPU time of all threads of a process, to the nanosecond (Linux's schedstat)."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) * 1e-9
