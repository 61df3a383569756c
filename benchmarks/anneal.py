"""The planner beside simulated annealing on small instances of eight devices: a table of docs/bounds.md.

python -m benchmarks.anneal

Eight devices are too many for `benchmarks.exact`. Annealing exchanges experts of two devices and judges each
exchange by the cost model itself (Kirkpatrick, Gelatt and Vecchi, Science 220, 1983). It has what the planner
found to begin with, so it shows what is left to find.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.exact import Box, Size, instance
from placement.bounds.bound import lower_bound_s
from placement.cost.rates import expert_rates
from placement.cost.roofline import device_seconds
from placement.given.problem import PlanningProblem
from placement.given.traces import CODING, GENERAL
from placement.plan import LOCAL_WORKER
from placement.policies.least_time.policy import least_time
from placement.replay.evaluate import evaluate

BOXES = (
    Box(LOCAL_WORKER, 0.08, 2e-5),
    Box("home-ram", 0.27, 1e-4),
    *(
        Box(f"box{index}", share, read_s, round_trip_s)
        for index, (share, read_s, round_trip_s) in enumerate(
            [
                (0.08, 1.5e-4, 6e-5),
                (0.1, 1e-4, 4e-5),
                (0.11, 7e-5, 1e-4),
                (0.12, 3e-5, 6e-5),
                (0.12, 1e-4, 2e-4),
                (0.12, 2e-4, 6e-5),
            ]
        )
    ),
)
SIZES = (Size(2, 16, 4, 1, 20), Size(2, 16, 3, 3, 16), Size(4, 32, 4, 1, 40))
_EXCHANGES, _SEEDS = 30_000, 2
# Of the time at the start: an exchange that costs so much more is made one time in e at first.
_FIRST_TEMPERATURE = 0.005


class _Layers:
    """Mean seconds of each layer of a trace under one holder an expert."""

    def __init__(self, problem: PlanningProblem, trace: NDArray[np.integer]) -> None:
        tokens, shape = problem.workload.tokens_per_step, problem.shape
        num_steps = len(trace) // tokens
        steps = trace[: num_steps * tokens].reshape(num_steps, tokens, shape.num_moe_layers, shape.top_k)
        distinct, counts = np.unique(steps.reshape(num_steps, -1), axis=0, return_counts=True)
        steps = distinct.reshape(-1, *steps.shape[1:]).astype(np.intp)
        self._rates = expert_rates(problem)
        self._num_devices = len(problem.devices)
        self._weights = counts / num_steps
        # float64 [num_layers, steps, tokens, num_experts], 1 where the token chose the expert.
        self._chosen = np.zeros((shape.num_moe_layers, *steps.shape[:2], shape.num_experts))
        np.put_along_axis(self._chosen, steps.transpose(2, 0, 1, 3), 1.0, axis=3)

    def seconds(self, row: int, holder: NDArray[np.integer]) -> float:
        holds = (holder[:, None] == np.arange(self._num_devices)).astype(np.float64)
        chosen = self._chosen[row]
        rows = ((chosen @ holds) > 0).sum(axis=1)
        distinct, pairs = chosen.max(axis=1) @ holds, chosen.sum(axis=1) @ holds
        times = device_seconds(self._rates, rows, distinct, pairs)
        return float(self._weights @ times.max(axis=1))


def anneal(
    problem: PlanningProblem, trace: NDArray[np.integer], holders: NDArray[np.integer], seed: int
) -> float:
    """The least mean seconds met, from `holders` [num_layers, num_experts] on."""
    layers, draws = _Layers(problem, trace), np.random.default_rng(seed)
    current = holders.astype(np.intp)
    seconds = np.array([layers.seconds(row, holder) for row, holder in enumerate(current)])
    best = first = float(seconds.sum())
    for index in range(_EXCHANGES):
        temperature = _FIRST_TEMPERATURE * first * (1 - index / _EXCHANGES) ** 2
        one, other = (divmod(int(cell), current.shape[1]) for cell in draws.integers(0, current.size, 2))
        if current[one] == current[other]:
            continue
        current[one], current[other] = current[other], current[one]
        trial = seconds.copy()
        for row in {one[0], other[0]}:
            trial[row] = layers.seconds(row, current[row])
        more_s = float(trial.sum() - seconds.sum())
        if more_s <= 0 or draws.random() < np.exp(-more_s / temperature):
            seconds = trial
            best = min(best, float(seconds.sum()))
        else:
            current[one], current[other] = current[other], current[one]
    return best


def main() -> None:
    print(
        "| layers x experts, top-k, tokens a step | routing | least-time, ms | annealed, ms "
        "| lower_bound_s, ms | least-time above annealed | annealed above the bound |"
    )
    print("|---|---|---|---|---|---|---|")
    for size in SIZES:
        for domain in (GENERAL, CODING):
            problem = instance(size, BOXES, domain)
            assert problem.stats is not None
            assert problem.stats.trace is not None
            trace = problem.stats.trace
            table = least_time(problem)
            ours_s, bound_s = evaluate(problem, table, trace).mean_s, lower_bound_s(problem, trace)
            best_s = min(anneal(problem, trace, table.table[:, :, 0], seed) for seed in range(_SEEDS))
            label = f"{size.num_layers} x {size.num_experts}, {size.top_k}, {size.tokens_per_step}"
            print(
                f"| {label} | {domain.name} | {ours_s * 1e3:.4f} | {best_s * 1e3:.4f} | {bound_s * 1e3:.4f} "
                f"| {ours_s / best_s - 1:.1%} | {best_s / bound_s - 1:.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
