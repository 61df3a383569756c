"""Bounds beside plans on text the planner never saw, and how they depend on its length (docs/bounds.md).

python -m benchmarks.bounds
"""

from __future__ import annotations

import time

from benchmarks.planner import EXPERT_BYTES, FIT_TOKENS, HELD_OUT_TOKENS, SHAPE, Case, cases
from placement.bound import independent_bound_s, lower_bound_s, trace_bound_s
from placement.evaluate import evaluate
from placement.least_time import least_time
from placement.problem import PlanningProblem
from placement.stats import RoutingStats
from placement.workload import Workload

LENGTHS = (500, 1000, 2000, 4000, 8000)


def main() -> None:
    print("| case | plan, ms | mean loads, ms | independence, ms | prices, ms | gap | bound, s |")
    print("|---|---|---|---|---|---|---|")
    for case in cases():
        _report(case)
    print("\n| case | " + " | ".join(f"{length} tokens" for length in LENGTHS) + " |")
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
    start = time.perf_counter()
    bound_s = lower_bound_s(problem, held_out)
    seconds = time.perf_counter() - start
    print(
        f"| {case.name} | {mean_s * 1e3:.1f} | {by_load_s * 1e3:.1f} | {independent} "
        f"| {bound_s * 1e3:.1f} | {mean_s / bound_s - 1:.1%} | {seconds:.1f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
