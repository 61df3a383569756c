"""The planner beside exact solutions of small instances: a table of docs/bounds.md.

python -m benchmarks.exact

A mixed-integer program, solved by HiGHS, whose objective is `evaluate`'s mean MoE time on a trace. Each
expert has one holder. An instance's trace is a few steps repeated many times, so that neither side is fitted
to a sample: any part of the trace shows about the same distribution.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from placement.bounds.bound import lower_bound_s
from placement.cost.rates import expert_rates
from placement.cost.roofline import ExpertRates, device_seconds
from placement.given.problem import PlanningDevice, PlanningProblem
from placement.given.stats import RoutingStats
from placement.given.traces import CODING, GENERAL, Domain, SyntheticRouter
from placement.holders import HolderTable
from placement.model_shape import AttentionShape, ModelShape
from placement.plan import LOCAL_WORKER, PlannedTier
from placement.policies.least_time.policy import least_time
from placement.replay.evaluate import evaluate
from placement.workload import Workload

# Each token's experts, ascending, tokens in any order: layers that agree in this cost the same.
_Step = tuple[tuple[int, ...], ...]
# Experts that the same tokens of a step need: those tokens -> the experts.
_Classes = dict[tuple[int, ...], list[int]]
_Sizes = tuple[tuple[tuple[int, ...], int], ...]
# Ways to split them: int [splits, classes, devices], and seconds, float64 [splits].
_Splits = tuple[NDArray[np.int64], NDArray[np.float64]]


@dataclass(frozen=True, slots=True, eq=False)
class ExactPlacement:
    """The best placement found, its mean seconds on the trace, and what none can beat: equal if solved."""

    table: HolderTable
    mean_s: float
    bound_s: float


def exact(
    problem: PlanningProblem, trace: NDArray[np.integer], time_limit_s: float, relative_gap: float = 1e-4
) -> ExactPlacement | None:
    """Solve for one holder an expert, on devices without software costs that share no machine.

    Binary x[layer, expert, device]. A step's layer takes as long as each device with its round trip and
    rows, which indicators y >= x switch on. Relaxed, experts would be split into fractions, so each step
    also is a convex combination of its whole splits over the devices, no faster than their mean.

    Args:
        trace: int [num_tokens, num_moe_layers, top_k].

    Returns:
        None if no placement was found in time.
    """
    program = _Program(problem)
    tokens = problem.workload.tokens_per_step
    num_steps = len(trace) // tokens
    steps = trace[: num_steps * tokens].reshape(num_steps, tokens, *trace.shape[1:])
    for row in range(problem.shape.num_moe_layers):
        seen = Counter(
            tuple(sorted(tuple(sorted(token)) for token in step)) for step in steps[:, :, row].tolist()
        )
        program.add_layer({step: count / num_steps for step, count in seen.items()})
    program.limit_capacities()
    found = program.solve(time_limit_s, relative_gap)
    if found is None:
        return None
    table, bound_s = found
    return ExactPlacement(table, evaluate(problem, table, trace).mean_s, bound_s)


class _Program:
    """The program, built layer by layer. Times are in units of the slowest device's read of an expert."""

    def __init__(self, problem: PlanningProblem) -> None:
        self._problem = problem
        self._rates = expert_rates(problem)
        self._unit_s = float(self._rates.read_s.max())
        self._num_devices = len(problem.devices)
        self._cost: list[float] = []
        self._most: list[float] = []
        self._whole: list[bool] = []
        self._entries: list[tuple[int, int, float]] = []
        self._limits: list[tuple[float, float]] = []
        # int [num_experts, num_devices] of each layer.
        self._held: list[NDArray[np.int64]] = []
        self._splits: dict[_Sizes, _Splits] = {}

    def add_layer(self, steps: dict[_Step, float]) -> None:
        """`steps`: the distinct ones and the share of each."""
        shape = (self._problem.shape.num_experts, self._num_devices)
        held = self._variables(shape[0] * shape[1], most=1.0, whole=True).reshape(shape)
        self._held.append(held)
        for expert in held:
            self._row(((v, 1.0) for v in expert), 1.0, 1.0)
        for step, share in steps.items():
            seconds = int(self._variables(1, cost=share)[0])
            classes = _classes(step)
            self._split_wholly(held, classes, seconds)
            for device in range(self._num_devices):
                self._wait_for(held, step, classes, device, seconds)

    def limit_capacities(self) -> None:
        for device, capacity in enumerate(self._problem.capacities().tolist()):
            self._row(((v, 1.0) for held in self._held for v in held[:, device]), 0.0, capacity)

    def solve(self, time_limit_s: float, relative_gap: float) -> tuple[HolderTable, float] | None:
        rows, columns, values = zip(*self._entries, strict=True)
        matrix = coo_array((values, (rows, columns)), shape=(len(self._limits), len(self._cost)))
        least, most = zip(*self._limits, strict=True)
        found = milp(
            np.array(self._cost),
            integrality=np.array(self._whole),
            bounds=Bounds(0.0, np.array(self._most)),
            constraints=LinearConstraint(matrix.tocsr(), least, most),
            options={"time_limit": time_limit_s, "mip_rel_gap": relative_gap},
        )
        if found.x is None:
            return None
        holders = np.stack([found.x[held].argmax(axis=1) for held in self._held])
        return HolderTable.from_single(holders), float(found.mip_dual_bound) * self._unit_s

    def _split_wholly(self, held: NDArray[np.int64], classes: _Classes, seconds: int) -> None:
        """The step is a mean of splits of whole experts, and no faster than the mean of their times."""
        sizes = tuple((tokens, len(experts)) for tokens, experts in classes.items())
        if sizes not in self._splits:
            self._splits[sizes] = _splits(self._rates, sizes)
        counts, times_s = self._splits[sizes]
        part = self._variables(len(times_s))
        self._row(((v, 1.0) for v in part), 1.0, 1.0)
        terms = [(v, t / self._unit_s) for v, t in zip(part.tolist(), times_s.tolist(), strict=True)]
        self._row([*terms, (seconds, -1.0)], -np.inf, 0.0)
        # The last device gets what the others do not.
        for row, experts in enumerate(classes.values()):
            for device in range(self._num_devices - 1):
                here = counts[:, row, device]
                split = [(part[i], float(here[i])) for i in np.flatnonzero(here)]
                self._row([*split, *((held[e, device], -1.0) for e in experts)], 0.0, 0.0)

    def _wait_for(
        self, held: NDArray[np.int64], step: _Step, classes: _Classes, device: int, seconds: int
    ) -> None:
        """The step takes at least the device's time, which is exact where x is whole."""
        rates = self._rates
        fixed: list[tuple[int, float]] = []
        everyone = [expert for experts in classes.values() for expert in experts]
        for asking, cost_s in (
            (everyone, rates.round_trip_s[device]),
            *((token, rates.row_wire_s[device]) for token in step),
        ):
            if cost_s:
                asked = int(self._variables(1, most=1.0)[0])
                for expert in asking:
                    self._row([(asked, 1.0), (held[expert, device], -1.0)], 0.0, np.inf)
                fixed.append((asked, cost_s / self._unit_s))
        read = [(held[e, device], rates.read_s[device] / self._unit_s) for e in everyone]
        computed = [
            (held[e, device], rates.compute_s[device] * len(tokens) / self._unit_s)
            for tokens, experts in classes.items()
            for e in experts
        ]
        busy = float(rates.busy_s[device]) / self._unit_s
        for work in (read, computed):
            self._row([*fixed, *work, (seconds, -1.0)], -np.inf, -busy)

    def _variables(
        self, count: int, *, cost: float = 0.0, most: float = np.inf, whole: bool = False
    ) -> NDArray[np.int64]:
        first = len(self._cost)
        self._cost += [cost] * count
        self._most += [most] * count
        self._whole += [whole] * count
        return np.arange(first, first + count)

    def _row(self, terms: Iterable[tuple[int, float]], least: float, most: float) -> None:
        row = len(self._limits)
        self._entries += [(row, int(variable), value) for variable, value in terms]
        self._limits.append((least, most))


def _classes(step: _Step) -> _Classes:
    classes: _Classes = {}
    for expert in sorted(set(itertools.chain(*step))):
        tokens = tuple(i for i, token in enumerate(step) if expert in token)
        classes.setdefault(tokens, []).append(expert)
    return dict(sorted(classes.items()))


def _splits(rates: ExpertRates, classes: _Sizes) -> _Splits:
    """All splits of a step over the devices."""
    num_devices = len(rates.read_s)
    each = [list(_compositions(size, num_devices)) for _, size in classes]
    counts = np.array(list(itertools.product(*each)))
    asking = np.array([[token in tokens for tokens, _ in classes] for token in range(_num_tokens(classes))])
    rows = (asking[None, :, :, None] & (counts[:, None] > 0)).any(axis=2).sum(axis=1)
    pairs = (counts * asking.sum(axis=0)[None, :, None]).sum(axis=1)
    return counts, device_seconds(rates, rows, counts.sum(axis=1), pairs).max(axis=1)


def _num_tokens(classes: _Sizes) -> int:
    return 1 + max(token for tokens, _ in classes for token in tokens)


def _compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Ordered ways to write `total` as a sum of `parts` numbers from 0."""
    if parts == 1:
        yield (total,)
        return
    for first in range(total + 1):
        for rest in _compositions(total - first, parts - 1):
            yield (first, *rest)


@dataclass(frozen=True, slots=True)
class Box:
    """A device of an instance: how many of all experts it holds, how long it reads one, and a round trip."""

    name: str
    share: float
    read_s: float
    round_trip_s: float = 0.0


GPU, RAM = Box(LOCAL_WORKER, 0.2, 2e-5), Box("home-ram", 0.4, 1e-4)
CLUSTERS: dict[str, tuple[Box, ...]] = {
    "GPU, RAM, box": (GPU, RAM, Box("box", 0.4, 1e-4, 5e-5)),
    "GPU, RAM, slow link": (GPU, RAM, Box("box", 0.4, 1e-4, 3e-4)),
    "near equal": (Box(LOCAL_WORKER, 0.3, 1e-4), Box("box", 0.3, 1e-4, 2e-5), Box("attic", 0.4, 5e-5, 2e-5)),
    "uneven": (Box(LOCAL_WORKER, 0.15, 3e-5), Box("box", 0.25, 2e-4, 5e-5), Box("attic", 0.6, 1e-4, 1e-4)),
}
_LINK_BYTES_PER_S = 1e9 / 8


@dataclass(frozen=True, slots=True)
class Size:
    num_layers: int
    num_experts: int
    top_k: int
    tokens_per_step: int
    num_steps: int


def instance(size: Size, boxes: Sequence[Box], domain: Domain, seed: int = 0) -> PlanningProblem:
    """A problem whose trace repeats `num_steps` steps 60 times, each time in another order.

    The devices have room for every expert once: copies would beat what the program allows.
    """
    shape = _shape(size)
    expert_bytes = shape.expert_bytes(16)
    edges = np.round(np.cumsum([0.0, *(box.share for box in boxes)]) * shape.num_routed_experts)
    devices = tuple(
        PlanningDevice(
            PlannedTier(
                box.name,
                "box" if box.round_trip_s else "home",
                "cpu",
                "ram",
                int(room) * expert_bytes,
            ),
            is_home=not box.round_trip_s,
            bandwidth_bytes_per_s=expert_bytes / box.read_s,
            ffn_flops_per_s=1e12,
            round_trip_s=box.round_trip_s,
            link_bytes_per_s=_LINK_BYTES_PER_S if box.round_trip_s else np.inf,
        )
        for box, room in zip(boxes, np.diff(edges), strict=True)
    )
    tokens = size.num_steps * size.tokens_per_step
    router = SyntheticRouter(shape, seed=seed, stickiness=0, document_tokens=tokens)
    steps = router.trace(domain, tokens).reshape(size.num_steps, size.tokens_per_step, -1, size.top_k)
    generator = np.random.default_rng(seed)
    order = np.concatenate([generator.permutation(size.num_steps) for _ in range(60)])
    trace = steps[order].reshape(-1, size.num_layers, size.top_k)
    stats = RoutingStats.from_trace(shape, trace, domain.name)
    return PlanningProblem(shape, devices, expert_bytes, stats, Workload(num_sequences=size.tokens_per_step))


def _shape(size: Size) -> ModelShape:
    attention = AttentionShape(num_heads=2, num_kv_heads=1, head_dim=8, window=0, has_head_gate=False)
    return ModelShape(
        name="small",
        hidden_size=16,
        vocab_size=100,
        moe_layers=tuple(range(size.num_layers)),
        num_experts=size.num_experts,
        top_k=size.top_k,
        moe_intermediate_size=8,
        shared_intermediate_size=8,
        dense_intermediate_size=24,
        attention=(attention,) * size.num_layers,
        num_mtp_layers=0,
    )


SIZES = (Size(2, 16, 4, 1, 24), Size(2, 16, 3, 2, 20), Size(4, 32, 4, 1, 40))
_TIME_LIMIT_S = 40.0


def main() -> None:
    print(
        "| layers x experts, top-k, tokens a step | devices | routing "
        "| least-time, ms | exact, ms | proven, ms | lower_bound_s, ms | above exact | solver, s |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for size in SIZES:
        for name, boxes in CLUSTERS.items():
            for domain in (GENERAL, CODING):
                problem = instance(size, boxes, domain)
                assert problem.stats is not None
                assert problem.stats.trace is not None
                trace = problem.stats.trace
                ours_s = evaluate(problem, least_time(problem), trace).mean_s
                start = time.perf_counter()
                best = exact(problem, trace, _TIME_LIMIT_S)
                solver_s = time.perf_counter() - start
                label = f"{size.num_layers} x {size.num_experts}, {size.top_k}, {size.tokens_per_step}"
                bound_s = lower_bound_s(problem, trace)
                solution = f"none found | | {bound_s * 1e3:.4f} |"
                if best is not None:
                    above = f"{ours_s / best.mean_s - 1:.1%}"
                    found = (best.mean_s, best.bound_s, bound_s)
                    solution = f"{' | '.join(f'{s * 1e3:.4f}' for s in found)} | {above}"
                row = (label, name, domain.name, f"{ours_s * 1e3:.4f}", solution, f"{solver_s:.0f}")
                print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
