"""What all processes take at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from statistics import fmean

import numpy as np

from benchmarks.fidelity.bench import EXPERTS, Bench, reply_of
from benchmarks.fidelity.clocks import mean, timed
from benchmarks.fidelity.figures import FanOut, TogetherProbe
from benchmarks.fidelity.processes import RunningWorker
from benchmarks.fidelity.rows import CHUNK_ROWS, fan_out_ids, hidden_rows


def probe_together(bench: Bench) -> TogetherProbe:
    """Every process tells how long it computed, so that links do not count."""
    cores = len(os.sched_getaffinity(0))
    in_head = len(bench.workers) < cores
    readers = bench.workers[: cores - in_head]
    reading = [_at_once(bench, readers, 12, in_head=in_head) for _ in range(3)]
    return TogetherProbe(
        experts_per_s=mean([float((EXPERTS / np.array(seconds)).sum()) for seconds in reading]),
        cores=cores,
        fan_outs=(_fan_out(bench, 4 * bench.repeats, 1), _fan_out(bench, bench.slow_turns, CHUNK_ROWS))
        if any(worker.is_local for worker in bench.workers)
        else (),
    )


def _fan_out(bench: Bench, turns: int, rows: int) -> FanOut:
    """The dispatcher's own call with the shared expert meanwhile, as a step makes it."""
    found = []
    for turn in range(turns):
        layer, ids = fan_out_ids(bench.shape, bench.plan, turn, rows)
        hidden = hidden_rows(bench.shape, rows, turn)
        bench.head_work(turn)
        found.append(timed(partial(bench.run, layer, ids, hidden, bench.shared_expert(layer, hidden))))
    return FanOut(rows, turns, fmean(found))


def _at_once(bench: Bench, workers: Sequence[RunningWorker], requests: int, *, in_head: bool) -> list[float]:
    """Seconds each of `workers`, and this process if asked to, takes for one of so many requests."""
    messages = []
    for turn in range(requests):
        for worker in workers:
            layer, held = bench.held(worker, turn)
            messages.append((worker, bench.request(layer, bench.same(held[:EXPERTS]))))
    for worker, message in messages:
        worker.client.send(message)
    own_s = 0.0
    if in_head:
        for turn in range(requests):
            layer = bench.layer(turn)
            own_s += timed(partial(bench.local, layer, bench.store.experts[layer][:EXPERTS]))
    compute_s = {worker.name: 0.0 for worker in workers}
    for worker, _ in messages:
        compute_s[worker.name] += reply_of(worker).compute_s
    return [seconds / requests for seconds in (*compute_s.values(), *([own_s] if in_head else []))]
