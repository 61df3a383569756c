"""Plans that survive losses beside exact solutions of small instances: a table of docs/survival.md.

python -m benchmarks.exact_survival

A mixed-integer program decides who holds what and, for every step, which holder computes each expert. So its
choice among holders is the best there is, where the dispatcher's is a rule that looks at one step.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from benchmarks.exact import Box, Size, instance
from placement.cost.rates import expert_rates
from placement.given.problem import PlanningProblem
from placement.given.traces import CODING, GENERAL, Domain
from placement.plan import LOCAL_WORKER
from placement.policies import cover
from placement.policies.least_time.policy import least_time
from placement.replay.evaluate import evaluate


@dataclass(frozen=True, slots=True)
class ExactSurvival:
    """Seconds of the best step found, and what none can beat: equal if solved."""

    mean_s: float
    bound_s: float


def exact_survival(
    problem: PlanningProblem, trace: NDArray[np.integer], time_limit_s: float
) -> ExactSurvival | None:
    """Solve for the holders of all experts, `problem.survive` + 1 boxes each or the head's, one token a step.

    Binary held[layer, expert, device] and used[step, expert, device] <= held. A step's layer takes as long
    as each device with its round trip and its row, which asked[step, device] >= used switches on. Devices
    are boxes of their own, without software costs.

    Args:
        trace: int [num_tokens, num_moe_layers, top_k].

    Returns:
        None if no placement was found in time, or none survives that many losses.
    """
    rates = expert_rates(problem)
    unit_s = float(rates.read_s.max())
    expert_s = np.maximum(rates.read_s, rates.compute_s) / unit_s
    ask_s = (rates.round_trip_s + rates.row_wire_s) / unit_s
    num_devices, head = len(problem.devices), problem.head
    shape = (problem.shape.num_moe_layers, problem.shape.num_experts, num_devices)
    held = np.arange(np.prod(shape)).reshape(shape)
    cost, most, whole = [0.0] * held.size, [1.0] * held.size, [1] * held.size
    entries: list[tuple[int, int, float]] = []
    limits: list[tuple[float, float]] = []

    def row(terms: Sequence[tuple[int, float]], least: float, upper: float) -> None:
        entries.extend((len(limits), variable, value) for variable, value in terms)
        limits.append((least, upper))

    def variable(cost_s: float, limit: float, is_whole: int) -> int:
        cost.append(cost_s)
        most.append(limit)
        whole.append(is_whole)
        return len(cost) - 1

    losses = problem.survive
    for expert in held.reshape(-1, num_devices).tolist():
        terms = [(v, float(losses + 1 if d == head else 1)) for d, v in enumerate(expert)]
        row(terms, losses + 1, np.inf)
    for device, capacity in enumerate(problem.capacities().tolist()):
        row([(v, 1.0) for v in held[:, :, device].ravel().tolist()], 0.0, capacity)
    for layer in range(shape[0]):
        steps = Counter(tuple(sorted(token)) for token in trace[:, layer].tolist())
        for step, times in steps.items():
            seconds = variable(times / len(trace), np.inf, 0)
            used = [[variable(0.0, 1.0, 1) for _ in range(num_devices)] for _ in step]
            for expert, choices in zip(step, used, strict=True):
                row([(v, 1.0) for v in choices], 1.0, 1.0)
                for device, choice in enumerate(choices):
                    row([(int(held[layer, expert, device]), 1.0), (choice, -1.0)], 0.0, np.inf)
            for device in range(num_devices):
                here = [choices[device] for choices in used]
                asked = variable(0.0, 1.0, 0)
                for choice in here:
                    row([(asked, 1.0), (choice, -1.0)], 0.0, np.inf)
                work = [(choice, float(expert_s[device])) for choice in here]
                busy = float(rates.busy_s[device]) / unit_s
                row([(asked, float(ask_s[device])), *work, (seconds, -1.0)], -np.inf, -busy)
    rows, columns, values = zip(*entries, strict=True)
    matrix = coo_array((values, (rows, columns)), shape=(len(limits), len(cost)))
    least, upper = zip(*limits, strict=True)
    found = milp(
        np.array(cost),
        integrality=np.array(whole),
        bounds=Bounds(0.0, np.array(most)),
        constraints=LinearConstraint(matrix.tocsr(), least, upper),
        options={"time_limit": time_limit_s, "mip_rel_gap": 1e-4},
    )
    if found.x is None:
        return None
    return ExactSurvival(float(found.fun) * unit_s, float(found.mip_dual_bound) * unit_s)


def boxes(problem: PlanningProblem, boxes: Sequence[Box], losses: int) -> PlanningProblem:
    """`problem` on other boxes, whose shares of all experts need not add up to one."""
    size, number = problem.expert_bytes, problem.shape.num_routed_experts
    like = problem.devices[0]
    devices = tuple(
        replace(
            like,
            tier=replace(
                like.tier,
                name=box.name,
                worker=box.name,
                node=box.name,
                budget_bytes=round(box.share * number) * size,
            ),
            is_home=not box.round_trip_s,
            bandwidth_bytes_per_s=size / box.read_s,
            round_trip_s=box.round_trip_s,
            link_bytes_per_s=1e9 / 8 if box.round_trip_s else np.inf,
        )
        for box in boxes
    )
    return replace(problem, devices=devices, survive=losses)


HEAD = Box(LOCAL_WORKER, 0.2, 2e-5)
CLUSTERS: dict[str, tuple[Box, ...]] = {
    "two equal boxes": (Box(LOCAL_WORKER, 0.1, 1e-4), *(Box(n, 0.95, 1e-4, 5e-5) for n in ("a", "b"))),
    "uneven, no room to spare": (
        HEAD,
        Box("a", 0.5, 2e-4, 5e-5),
        Box("b", 0.55, 1e-4, 1e-4),
        Box("c", 0.55, 1e-4, 1e-4),
    ),
    "a fast box, some room": (
        HEAD,
        Box("a", 0.7, 5e-5, 5e-5),
        Box("b", 0.6, 1e-4, 5e-5),
        Box("c", 0.6, 2e-4, 1e-4),
    ),
    "plenty": (HEAD, Box("a", 1.0, 1e-4, 5e-5), Box("b", 1.0, 1e-4, 5e-5), Box("c", 1.0, 2e-4, 1e-4)),
}
SIZES = (Size(2, 10, 2, 1, 8), Size(1, 12, 3, 1, 10))
_TIME_LIMIT_S = 15.0


def problem_of(size: Size, cluster: str, domain: Domain, losses: int, seed: int = 0) -> PlanningProblem:
    """An instance on one of `CLUSTERS`."""
    return boxes(instance(size, CLUSTERS[cluster], domain, seed), CLUSTERS[cluster], losses)


def main() -> None:
    print(
        "| layers x experts, top-k | boxes | routing | least-time without, ms | with, ms | it costs ", end=""
    )
    print("| exact with, ms | proven, ms | above exact | short | solver, s |\n|" + "---|" * 11)
    for size in SIZES:
        for name in CLUSTERS:
            for domain in (GENERAL, CODING):
                problem = problem_of(size, name, domain, 1)
                assert problem.stats is not None
                trace = problem.stats.trace
                assert trace is not None
                plain_s = evaluate(problem, least_time(replace(problem, survive=0)), trace).mean_s
                table = least_time(problem)
                ours_s = evaluate(problem, table, trace).mean_s
                short = cover.Boxes.of(problem).short(table.masks(len(problem.devices)), 1).sum()
                start = time.perf_counter()
                best = exact_survival(problem, trace, _TIME_LIMIT_S)
                solver_s = time.perf_counter() - start
                found = "none | | "
                if best is not None:
                    above = f"{ours_s / best.mean_s - 1:.1%}"
                    found = f"{best.mean_s * 1e3:.4f} | {best.bound_s * 1e3:.4f} | {above}"
                print(
                    f"| {size.num_layers} x {size.num_experts}, {size.top_k} | {name} | {domain.name} "
                    f"| {plain_s * 1e3:.4f} | {ours_s * 1e3:.4f} | {ours_s / plain_s - 1:.1%} | {found} "
                    f"| {short} | {solver_s:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
