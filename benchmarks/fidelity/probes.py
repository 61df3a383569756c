"""Microbenchmarks: what each process and link can do, as numbers that a cluster file states.

None of them runs a generation. Every probe reads other weights than the last did, so that caches are as cold
as they are in a step. What a prompt does is probed with a chunk's rows, each choosing its experts by lot. The
mean of a step is the sum of its parts' means, but its median is not the sum of their medians: all figures are
means over repetitions, a tenth of them left out at either end.
"""

from __future__ import annotations

from benchmarks.fidelity.bench import Bench
from benchmarks.fidelity.figures import Probes
from benchmarks.fidelity.probe_head import probe_head
from benchmarks.fidelity.probe_processes import probe_head_process, probe_worker
from benchmarks.fidelity.probe_together import probe_together


def probe(bench: Bench) -> Probes:
    """Everything once: each worker, this process, the head, and all at once."""
    workers, links = {}, {}
    for worker in bench.workers:
        workers[worker.name], links[worker.name] = probe_worker(bench, worker)
    return Probes(
        head_process=probe_head_process(bench),
        head=probe_head(bench),
        workers=workers,
        links=links,
        together=probe_together(bench) if bench.workers else None,
    )
