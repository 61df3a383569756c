"""Times no placement on these devices can beat, replicas and any choice among them included.

`lower_bound_s` is the best of them (docs/bounds.md). `trace_bound_s` is quick and holds for every trace;
`memory_prices` too, and is nearest to what plans reach; `independent_bound_s` holds in expectation
for independent routing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import coo_array, vstack

from placement.bounds.layer_options import asked_seconds, least_expert_seconds
from placement.bounds.memory_prices import priced_bound_s
from placement.cost.rates import expert_rates
from placement.cost.roofline import ExpertRates
from placement.given.problem import PlanningProblem

_BISECTIONS = 60
# Of the experts a layer asks from other boxes: fine where a layer nearly stays at home.
_REMOTE_LOADS = np.linspace(0, 1, 25) ** 2
_MOST_SUBSETS = 1 << 8
# Sums over a trace differ in their last digits; a bound must not exceed a time that meets it exactly.
_ROUNDING = 1e-9

_Term = tuple[NDArray[np.intp], NDArray[np.float64] | float]


def lower_bound_s(
    problem: PlanningProblem, trace: NDArray[np.integer], *, independent: bool = False
) -> float:
    """The best known seconds of MoE layers a step that no placement's mean on this trace can beat.

    Args:
        trace: int [num_tokens, num_moe_layers, top_k], at least one step of the problem's workload.
        independent: tokens choose experts independently of each other, and the expected time is meant that
            the trace is a sample of. Then `independent_bound_s` counts too, which on short traces is higher.
    """
    bounds = [trace_bound_s(problem, trace), priced_bound_s(problem, trace)]
    if independent:
        num_experts = problem.shape.num_experts
        counts = [np.bincount(layer.ravel(), minlength=num_experts) for layer in trace.transpose(1, 0, 2)]
        bounds.append(independent_bound_s(problem, np.stack(counts) / len(trace)))
    return max(bounds) * (1 - _ROUNDING)


def trace_bound_s(problem: PlanningProblem, trace: NDArray[np.integer]) -> float:
    """Seconds below which no placement's mean `Evaluation.moe_seconds` on this trace can lie.

    Two facts hold for every placement. A set of devices computes at most the activations of as many of the
    hottest experts as it has room for. And a layer takes as long as each device does, so its mean time is at
    least each device's time at its mean load (Jensen). The least time at which mean loads exist that satisfy
    both is a bound; splitting every single step's experts as if each device held all of them is another.

    Args:
        trace: int [num_tokens, num_moe_layers, top_k], at least one step of the problem's workload.
    """
    needs = _needed_experts(problem, trace)
    distinct = needs.sum(axis=2)
    rates = expert_rates(problem)
    by_load = _least_at_mean_load(problem, rates, needs.mean(axis=0), distinct)
    by_step = _mean_of_best_splits(rates, distinct)
    return problem.shape.num_moe_layers * max(by_load, by_step)


def independent_bound_s(problem: PlanningProblem, frequencies: NDArray[np.float64]) -> float:
    """Seconds below which no placement's expected MoE time lies if tokens choose experts independently.

    Independently means: tokens of each other, and experts of one token with negative association, as draws
    without replacement have (Joag-Dev and Proschan, Annals of Statistics 11, 1983). Let m be the expected
    number of a layer's experts that no home device holds. Then the layer stays at home with probability at
    most exp(-m), and other boxes take at least (A - s)(1 - exp(-m)) + s m on average: A their time for one
    expert, s for each further one. A home device takes at least its time b at its mean load; since a home
    load and leaving home are negatively associated too, the longer of both takes at least the others' mean
    plus exp(-m) b, if b never exceeds A - s. A layer of small m needs room at home for as many of its hottest
    experts as carry the rest. The bound is the cheapest choice of m for every layer, mixed freely, that fits
    the room: a linear program.

    Args:
        frequencies: float64 [num_moe_layers, num_experts], share of tokens that choose the expert.
    """
    needs = 1 - (1 - frequencies) ** problem.workload.tokens_per_step
    home = [i for i, device in enumerate(problem.devices) if device.is_home]
    remote = [i for i, device in enumerate(problem.devices) if not device.is_home]
    rates = expert_rates(problem)
    grid = _REMOTE_LOADS if remote else np.zeros(2)
    load = needs.sum(axis=1).repeat(len(grid) - 1)
    layer = np.arange(len(needs)).repeat(len(grid) - 1)
    least, most = (load * np.tile(edges, len(needs)) for edges in (grid[:-1], grid[1:]))

    # One kind for each layer and interval of m. Variables of a kind: the part of the layer that is of this
    # kind, and times that part its seconds, its m and the load of each home device.
    part, seconds, away, *loads = (np.arange(len(load)) + i * len(load) for i in range(3 + len(home)))
    program = _Program(num_variables=(3 + len(home)) * len(load))
    program.cost[seconds] = 1.0
    first_s, further_s = _remote_speed(rates, remote, int(np.ceil(load.max())))
    leaves = 1 - np.exp(-least)
    elsewhere_s = first_s * leaves + further_s * least
    program.at_most(0.0, (part, elsewhere_s), (seconds, -1.0))
    program.at_most(0.0, (part, least), (away, -1.0))
    program.at_most(0.0, (away, 1.0), (part, -most))
    for device, carried in zip(home, loads, strict=True):
        busy_s, expert_s = float(rates.busy_s[device]), float(least_expert_seconds(rates)[device])
        program.at_most(0.0, (part, busy_s), (carried, expert_s), (seconds, -1.0))
        # What the device may be charged beside other boxes: no more than one expert elsewhere takes.
        beside_s = min(expert_s, (first_s - busy_s) / float(load.max()))
        if beside_s > 0:
            program.at_most(
                0.0,
                (part, elsewhere_s + (1 - leaves) * busy_s),
                (carried, (1 - leaves) * beside_s),
                (seconds, -1.0),
            )
    program.equal(0.0, (away, 1.0), (part, -load), *((carried, 1.0) for carried in loads))
    for row in range(len(needs)):
        program.equal(1.0, (part[layer == row][None], 1.0))

    capacities = problem.capacities()
    slots = _room_for(needs, layer, load - most)
    program.at_most(float(capacities[home].sum()), (part[None], slots))
    hottest = np.concatenate([[0.0], np.cumsum(np.sort(needs, axis=None)[::-1])])
    holders = [(away, int(capacities[remote].sum()))]
    holders += [(carried, int(capacities[d])) for d, carried in zip(home, loads, strict=True)]
    for subset in range(1, min(1 << len(holders), _MOST_SUBSETS)):
        chosen = [holder for i, holder in enumerate(holders) if subset >> i & 1]
        room = min(sum(capacity for _, capacity in chosen), needs.size)
        program.at_most(float(hottest[room]), *((variable[None], 1.0) for variable, _ in chosen))
    return program.minimum()


class _Program:
    """A linear program over non-negative variables, written constraint by constraint."""

    def __init__(self, num_variables: int) -> None:
        self.cost = np.zeros(num_variables)
        self._rows: dict[bool, list[coo_array]] = {False: [], True: []}
        self._limits: dict[bool, list[NDArray[np.float64]]] = {False: [], True: []}

    def at_most(self, limit: float, *terms: _Term) -> None:
        self._add(False, limit, terms)

    def equal(self, limit: float, *terms: _Term) -> None:
        self._add(True, limit, terms)

    def _add(self, equality: bool, limit: float, terms: Sequence[_Term]) -> None:
        """Variables [n]: n constraints, one a variable; [1, n]: one constraint over all of them."""
        num_rows = len(terms[0][0])
        columns = np.concatenate([variables.ravel() for variables, _ in terms])
        values = np.concatenate([np.broadcast_to(v, c.shape[-1:]) for c, v in terms])
        rows = np.concatenate([np.arange(num_rows).repeat(c.size // num_rows) for c, _ in terms])
        self._rows[equality].append(coo_array((values, (rows, columns)), shape=(num_rows, len(self.cost))))
        self._limits[equality].append(np.full(num_rows, limit))

    def minimum(self) -> float:
        found = linprog(
            self.cost,
            A_ub=vstack(self._rows[False], format="csr"),
            b_ub=np.concatenate(self._limits[False]),
            A_eq=vstack(self._rows[True], format="csr"),
            b_eq=np.concatenate(self._limits[True]),
            method="highs",
        )
        # Only rounding can make a problem that fits infeasible; 0 is a bound too.
        return float(found.fun) if found.success else 0.0


def _room_for(
    needs: NDArray[np.float64], layer: NDArray[np.intp], load: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Experts of the layer, the hottest and a fraction of the next, that carry each load."""
    hottest = np.cumsum(np.sort(needs, axis=1)[:, ::-1], axis=1)
    hottest = np.concatenate([np.zeros((len(hottest), 1)), hottest], axis=1)
    counts = np.arange(hottest.shape[1])
    return np.array(
        [np.interp(wanted, hottest[row], counts) for row, wanted in zip(layer, load, strict=True)]
    )


def _remote_speed(rates: ExpertRates, remote: list[int], load: int) -> tuple[float, float]:
    """Seconds (A - s, s): other boxes answer for n experts no sooner than A - s + n s; (0, 0) without any."""
    if not remote:
        return 0.0, 0.0
    most = max(2, 4 * load)
    expert_s = least_expert_seconds(rates)[remote]
    message_s = asked_seconds(rates)[remote]
    finish = np.sort(message_s[:, None] + expert_s[:, None] * np.arange(1, most + 1), axis=None)[:most]
    # In the long run experts are done at the speed of all boxes together, at first perhaps sooner.
    further = min(
        float(((finish[1:] - finish[0]) / np.arange(1, most)).min()), 1 / float((1 / expert_s).sum())
    )
    return float(finish[0]) - further, further


def _needed_experts(problem: PlanningProblem, trace: NDArray[np.integer]) -> NDArray[np.bool_]:
    """bool [num_steps, num_moe_layers, num_experts]: experts that some token of the step chose."""
    shape, tokens = problem.shape, problem.workload.tokens_per_step
    num_steps = len(trace) // tokens
    steps = trace[: num_steps * tokens].reshape(num_steps, tokens, shape.num_moe_layers, shape.top_k)
    chosen = steps.transpose(0, 2, 1, 3).reshape(num_steps, shape.num_moe_layers, -1).astype(np.intp)
    needs = np.zeros((num_steps, shape.num_moe_layers, shape.num_experts), dtype=np.bool_)
    np.put_along_axis(needs, chosen, True, axis=2)
    return needs


def _least_at_mean_load(
    problem: PlanningProblem,
    rates: ExpertRates,
    frequencies: NDArray[np.float64],
    distinct: NDArray[np.integer],
) -> float:
    """Seconds a layer. A device asked for n of at most u experts is charged n / u of a message."""
    num_layers = problem.shape.num_moe_layers
    message_s = asked_seconds(rates) / distinct.max()
    slope = least_expert_seconds(rates) + message_s
    capacities = problem.capacities()
    # Distinct experts a layer that the c hottest experts of all layers answer for.
    hottest = np.concatenate([[0.0], np.cumsum(np.sort(frequencies, axis=None)[::-1])]) / num_layers
    needed = float(distinct.mean())

    def possible(seconds: float) -> bool:
        """Whether loads exist: for every set of devices its room, the others' time, together suffice.

        The tightest sets are prefixes in the order of load a place, since the room's worth is concave.
        """
        load = np.maximum(seconds - rates.busy_s, 0.0) / slope
        order = np.argsort(-load / np.maximum(capacities, 1))
        room = np.concatenate([[0], np.cumsum(capacities[order])]).clip(max=len(hottest) - 1)
        others = np.concatenate([np.cumsum(load[order][::-1])[::-1], [0.0]])
        return bool((hottest[room] + others >= needed * (1 - 1e-12)).all())

    low, high = float(rates.busy_s.max()), float(rates.busy_s.max() + (slope * needed).max())
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if possible(middle) else (middle, high)
    return low


def _mean_of_best_splits(rates: ExpertRates, distinct: NDArray[np.integer]) -> float:
    """Seconds a layer if every step's experts could be split over all devices at will."""
    expert_s = least_expert_seconds(rates)
    message_s = asked_seconds(rates)
    most = int(distinct.max())
    # When each device would be done with its n-th expert; the u smallest finish u experts soonest.
    finish = (rates.busy_s + message_s)[:, None] + expert_s[:, None] * np.arange(1, most + 1)
    best = np.maximum(np.sort(finish, axis=None)[:most], rates.busy_s.max())
    return float(best[distinct - 1].mean())
