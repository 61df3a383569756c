"""What one process takes for experts, the others idle: the head's own, and a worker's with its link."""

from __future__ import annotations

import time
from functools import partial

import numpy as np
from numpy.typing import NDArray

from benchmarks.fidelity.bench import EXPERTS, Bench, reply_of
from benchmarks.fidelity.chunks import CHUNK_SIZES, ChunkRates, Chunks, chunk_rates
from benchmarks.fidelity.clocks import cpu_s, mean, timed
from benchmarks.fidelity.figures import LinkProbe, ProcessProbe
from benchmarks.fidelity.processes import RunningWorker
from benchmarks.fidelity.rows import chunk_ids, hidden_rows, rotated
from placement.plan import LOCAL_WORKER


def probe_head_process(bench: Bench) -> ProcessProbe:
    """As many experts as a token chooses beside a quarter of them: threads make the first one dearer.

    Where the plan gives this process experts, the dispatcher asks for them, as in a step; its time in a
    layer that asks nobody is the head's. Elsewhere its arithmetic is that of shared experts alone.
    """
    asks = bench.plan.local_worker is not None
    experts_of = bench.plan.experts_of(LOCAL_WORKER) if asks else bench.store.experts
    ask = bench.dispatch if asks else bench.local
    most = min(bench.shape.top_k, *map(len, experts_of.values()))
    few = max(1, most // 4)
    seconds: dict[int, list[float]] = {few: [], most: []}
    for turn in range(bench.repeats):
        for index, (experts, found) in enumerate(seconds.items()):
            # Not the same layer twice in turn: what was just read would be warm, and a read look cheap.
            layer = bench.layer(2 * turn + index)
            held = rotated(experts_of[layer], turn * most)
            found.append(timed(partial(ask, layer, held[:experts])))
    read_s = (mean(seconds[most]) - mean(seconds[few])) / (most - few)
    dispatch_s = bench.dispatch_cpu_s(()) if asks else 0.0
    request_s = max(0.0, mean(seconds[few]) - few * read_s - dispatch_s)
    chunk = _own_chunk_rates(bench, request_s) if asks else _dense_rates(bench)
    return ProcessProbe(read_s, chunk, request_s)


def _dense_rates(bench: Bench) -> ChunkRates:
    """Of a shared expert, as for pairs of as many FLOPs."""
    sizes = [Chunks() for _ in CHUNK_SIZES]
    rows_of_pairs = bench.shape.expert_parameters / bench.shape.shared_expert_parameters
    for turn in range(bench.repeats):
        for index, (size, rows) in enumerate(zip(sizes, CHUNK_SIZES, strict=True)):
            action = bench.shared_expert(bench.layer(2 * turn + index), hidden_rows(bench.shape, rows, turn))
            size.add(timed(action), 1, rows / rows_of_pairs)
    return chunk_rates(sizes, 0.0)


def _own_chunk_rates(bench: Bench, request_s: float) -> ChunkRates:
    sizes = [Chunks() for _ in CHUNK_SIZES]
    nobody_s = [bench.dispatch_cpu_s((), rows) for rows in CHUNK_SIZES]
    for turn in range(bench.repeats):
        for index, (size, rows) in enumerate(zip(sizes, CHUNK_SIZES, strict=True)):
            layer = bench.layer(2 * turn + index)
            ids = chunk_ids(bench.shape, bench.plan.experts_of(LOCAL_WORKER)[layer], turn, rows)
            run = partial(bench.run, layer, ids, hidden_rows(bench.shape, len(ids), turn))
            size.add(timed(run) - nobody_s[index], *_counts(ids))
    return chunk_rates(sizes, request_s)


def _counts(ids: NDArray[np.int32]) -> tuple[int, int]:
    """Distinct experts and (row, expert) pairs."""
    chosen = ids[ids >= 0]
    return len(np.unique(chosen)), len(chosen)


def probe_worker(bench: Bench, worker: RunningWorker) -> tuple[ProcessProbe, LinkProbe]:
    walls: dict[int, list[float]] = {1: [], EXPERTS: []}
    computes: dict[int, list[float]] = {1: [], EXPERTS: []}
    before_s, own_s, software = cpu_s(worker.pid), 0.0, []
    for turn in range(bench.repeats):
        for index, experts in enumerate((1, EXPERTS)):
            # Not the same layer twice in turn: what was just read would be warm, and a read look cheap.
            layer, held = bench.held(worker, 2 * turn + index)
            bench.head_work(turn)
            started, started_cpu = time.perf_counter(), time.thread_time()
            worker.client.send(bench.request(layer, bench.same(held[:experts])))
            compute_s = reply_of(worker).compute_s
            walls[experts].append(time.perf_counter() - started)
            computes[experts].append(compute_s)
            own_s += compute_s
            software.append(time.thread_time() - started_cpu)
    requests_s = max(0.0, (cpu_s(worker.pid) - before_s - own_s) / (2 * bench.repeats))
    read_s = (mean(computes[EXPERTS]) - mean(computes[1])) / (EXPERTS - 1)
    kernel_s = max(0.0, mean(computes[1]) - read_s)
    waits = [w - c for w, c in zip(walls[EXPERTS], computes[EXPERTS], strict=True)]
    wait_s = mean(waits) - mean(software)
    rates, row_s = _worker_chunks(bench, worker, kernel_s, wait_s)
    return (
        ProcessProbe(read_s, rates, kernel_s + requests_s),
        LinkProbe(wait_s - requests_s - row_s, row_s),
    )


def _worker_chunks(
    bench: Bench, worker: RunningWorker, kernel_s: float, wait_s: float
) -> tuple[ChunkRates, float]:
    """The worker's rates in chunks, and seconds a row more takes both ways, without the head's CPU time.

    Args:
        kernel_s: that a kernel call takes beyond its experts.
        wait_s: for the answer to one row beyond what both processes compute.
    """
    sizes, waits, rows = [Chunks() for _ in CHUNK_SIZES], [], []
    for turn in range(bench.slow_turns):
        for index, size in enumerate(sizes):
            layer, held = bench.held(worker, 2 * turn + index)
            bench.head_work(turn)
            ids = chunk_ids(bench.shape, held, turn, CHUNK_SIZES[index])
            request = bench.request(layer, ids, hidden_rows(bench.shape, len(ids), turn))
            started, started_cpu = time.perf_counter(), time.thread_time()
            worker.client.send(request)
            compute_s = reply_of(worker).compute_s
            wall_s, own_s = time.perf_counter() - started, time.thread_time() - started_cpu
            size.add(compute_s, *_counts(ids))
            if size is sizes[-1]:
                waits.append(wall_s - compute_s - own_s)
                rows.append(len(ids))
    row_s = max(1e-9, (mean(waits) - wait_s) / (mean(rows) - 1))
    return chunk_rates(sizes, kernel_s), row_s
