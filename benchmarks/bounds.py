"""Bounds beside plans on text the planner never saw, and beside placements fitted to that very text.

And how they depend on the length of the text (docs/bounds.md).

python -m benchmarks.bounds
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.planner import EXPERT_BYTES, FIT_TOKENS, HELD_OUT_TOKENS, SHAPE, Case, cases
from placement.bounds.bound import independent_bound_s, lower_bound_s, trace_bound_s
from placement.given.problem import PlanningProblem
from placement.given.stats import RoutingStats
from placement.holders import HolderTable
from placement.policies.least_time.copies import add_copies
from placement.policies.least_time.layer_search import sample_layers
from placement.policies.least_time.policy import least_time
from placement.policies.least_time.refine import refine
from placement.replay.evaluate import evaluate
from placement.workload import Workload

LENGTHS = (500, 1000, 2000, 4000, 8000)


def main() -> None:
    _gaps()
    print()
    _lengths()


def _gaps() -> None:
    print(
        "| case | plan, ms | fitted, ms | mean loads, ms | independence, ms | lower bound, ms "
        "| plan above it | fitted above it | bound, s |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for case in cases():
        _report(case)


def _lengths() -> None:
    print("| case | " + " | ".join(f"{length} tokens" for length in LENGTHS) + " |")
    print("|---" * (1 + len(LENGTHS)) + "|")
    for case in list(cases())[::3]:
        problem = _problem(case)
        text = case.router.trace(case.domain, max(LENGTHS), stream_seed=1)
        gaps = []
        table = least_time(problem)
        for length in LENGTHS:
            mean_s = evaluate(problem, table, text[:length]).mean_s
            gaps.append(f"{mean_s / lower_bound_s(problem, text[:length]) - 1:.1%}")
        print(f"| {case.name} | {' | '.join(gaps)} |", flush=True)


def _problem(case: Case) -> PlanningProblem:
    stats = RoutingStats.from_trace(SHAPE, case.router.trace(case.domain, FIT_TOKENS), case.domain.name)
    return PlanningProblem(SHAPE, case.devices, EXPERT_BYTES, stats, Workload(drafts=case.drafts))


def _fitted_s(problem: PlanningProblem, text: NDArray[np.integer]) -> float:
    """The least mean on `text` of placements searched on all of it: how much a bound of it may be at most."""
    stats = RoutingStats.from_trace(SHAPE, text, "this text")
    known = replace(problem, stats=stats)
    layers = sample_layers(text, stats.frequencies(), problem.workload.tokens_per_step, text.size)
    first = least_time(known)
    # No shrinkage to speak of: chances of this text count in full.
    holders = refine(known, first.table[:, :, 0], layers, most_rounds=200, shrinkage=1.0)
    single = HolderTable.from_single(holders)
    tables = (first, single, add_copies(known, single, layers))
    return min(evaluate(known, table, text).mean_s for table in tables)


def _report(case: Case) -> None:
    problem = _problem(case)
    held_out = case.router.trace(case.domain, HELD_OUT_TOKENS, stream_seed=1)
    mean_s = evaluate(problem, least_time(problem), held_out).mean_s
    independent = "-"
    # Sticky text is not independent: there that bound does not hold.
    if case.router.stickiness == 0:
        frequencies = RoutingStats.from_trace(SHAPE, held_out, "held out").frequencies()
        independent = f"{independent_bound_s(problem, frequencies) * 1e3:.1f}"
    by_load_s = trace_bound_s(problem, held_out)
    fitted_s = _fitted_s(problem, held_out)
    # Processor time: other work on the machine is not the bound's.
    start = time.process_time()
    bound_s = lower_bound_s(problem, held_out)
    seconds = time.process_time() - start
    print(
        f"| {case.name} | {mean_s * 1e3:.1f} | {fitted_s * 1e3:.1f} | {by_load_s * 1e3:.1f} "
        f"| {independent} | {bound_s * 1e3:.1f} | {mean_s / bound_s - 1:.1%} "
        f"| {fitted_s / bound_s - 1:.1%} | {seconds:.1f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
