"""The planner's own policy: the least expected time of a step it can find, never above a baseline's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placement import baselines
from placement.blocks import group_seconds, improve, step_sample
from placement.cost import expert_rates
from placement.errors import PlanDoesNotFit
from placement.evaluate import evaluate
from placement.expectation import sampling_weights
from placement.holders import HolderTable
from placement.problem import PlanningProblem
from placement.stats import RoutingStats

# The coarse search compares starts, the fine one needs a standard error of about 1% of a layer's time.
_COARSE_STEPS, _COARSE_SHIFTS = 120, (64, 32, 16, 8)
_FINE_STEPS, _FINE_SHIFTS = 500, (8, 4, 2, 1)
_FINE_SEARCHES = 2
_MOST_CHECK_STEPS = 1000
# With more groups than this, leaving one out is what the search itself finds.
_MOST_GROUPS_TO_LEAVE_OUT = 4
# More groups than this cost search time and gain nothing: their blocks would hold an expert or two a layer.
_MOST_GROUPS = 12
_LARGEST_TOLERANCE = 1e3
# Tokens drawn where statistics have counts alone, or a trace of fewer steps than are worth fitting to.
_DRAWN_TOKENS, _FEWEST_STEPS = 3000, 96

_BASELINES = (
    baselines.one_box,
    baselines.uniform,
    baselines.whole_layers,
    baselines.hottest_first,
    baselines.hottest_per_layer,
)


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A placement and its mean seconds of MoE layers a step on the part of the trace it was not fitted to."""

    name: str
    table: HolderTable
    moe_seconds: float


def least_time(problem: PlanningProblem) -> HolderTable:
    """The candidate of least expected time; see `candidates`."""
    return min(candidates(problem), key=lambda candidate: candidate.moe_seconds).table


def candidates(problem: PlanningProblem) -> list[Candidate]:
    """Baselines and searched placements, all timed on the same held-back third of the trace.

    With counts alone, or a very short trace, tokens are drawn from the counts. Boundaries
    (placement/blocks.py) are fitted to the other two thirds, from several starts: hottest first, whole
    layers, even shares, each box left out in turn, with devices in up to three orders.
    """
    stats = baselines.require_stats(problem, "least-time")
    tokens = problem.workload.tokens_per_step
    trace = stats.trace
    if trace is None or len(trace) < _FEWEST_STEPS * tokens:
        trace = _drawn_trace(stats, max(_DRAWN_TOKENS, _FEWEST_STEPS * tokens))
    cut = len(trace) * 2 // 3
    fit, check = trace[:cut], trace[cut:][: _MOST_CHECK_STEPS * tokens]
    found = []
    for policy in _BASELINES:
        try:
            table = policy(problem)
        except PlanDoesNotFit:
            continue
        found.append(_timed(policy.__name__, table, problem, check))
    heat = stats.counts.astype(np.int64)
    found += [_timed(name, table, problem, check) for name, table in _searched(problem, heat, fit)]
    return found


def _timed(name: str, table: HolderTable, problem: PlanningProblem, check: NDArray[np.integer]) -> Candidate:
    return Candidate(name, table, evaluate(problem, table, check).mean_s)


def _drawn_trace(stats: RoutingStats, num_tokens: int) -> NDArray[np.uint16]:
    """Tokens with the counted frequencies, layers and tokens independent; the same every time."""
    weights = sampling_weights(stats.frequencies())
    generator = np.random.default_rng(0)
    with np.errstate(divide="ignore"):
        scores = np.log(weights)
    trace = np.empty((num_tokens, len(weights), stats.top_k), dtype=np.uint16)
    for row in range(len(weights)):
        noisy = scores[row] + generator.gumbel(size=(num_tokens, weights.shape[1]))
        trace[:, row] = np.argpartition(-noisy, stats.top_k - 1, axis=1)[:, : stats.top_k]
    return trace


def _device_orders(problem: PlanningProblem) -> Iterator[tuple[str, list[int]]]:
    """Which devices get hotter experts, each order once.

    Home before remote; by memory bandwidth alone; by bandwidth for each expert there is room for, since a
    small box shares the load evenly only if what little it holds is hot.
    """
    bandwidth = np.array([device.bandwidth_bytes_per_s for device in problem.devices])
    home_first = baselines.by_speed(problem)
    orders = {
        "home first": home_first,
        "fastest first": sorted(home_first, key=lambda i: -bandwidth[i]),
        "densest first": sorted(home_first, key=lambda i: -bandwidth[i] / max(problem.capacities()[i], 1)),
    }
    seen: list[list[int]] = []
    for name, order in orders.items():
        if order not in seen:
            seen.append(order)
            yield name, order


def _groups(problem: PlanningProblem, order: list[int]) -> list[list[int]]:
    """Neighbours in `order` of about the same speed, together; devices without room left out.

    Devices at home stay alone. The tolerance grows until few enough groups are left for the search.
    """
    capacities = problem.capacities()
    useful = [index for index in order if capacities[index]]
    tolerance = 1.0
    while True:
        groups: list[list[int]] = []
        for index in useful:
            if groups and _alike(problem, groups[-1][0], index, tolerance):
                groups[-1].append(index)
            else:
                groups.append([index])
        if len(groups) <= _MOST_GROUPS or tolerance > _LARGEST_TOLERANCE:
            return groups
        tolerance *= 1.1


def _alike(problem: PlanningProblem, one: int, other: int, tolerance: float) -> bool:
    first, second = problem.devices[one], problem.devices[other]
    if first.is_home or second.is_home:
        return False
    ratios = (
        first.expert_seconds(problem.expert_bytes) / second.expert_seconds(problem.expert_bytes),
        first.bandwidth_bytes_per_s / second.bandwidth_bytes_per_s,
        first.link_bytes_per_s / second.link_bytes_per_s,
    )
    return all(1 / tolerance <= ratio <= tolerance for ratio in ratios)


def _searched(
    problem: PlanningProblem, heat: NDArray[np.int64], fit: NDArray[np.integer]
) -> Iterator[tuple[str, HolderTable]]:
    """The best few of a coarse search from every start, searched again in steps of one expert."""
    tokens = problem.workload.tokens_per_step
    rates = expert_rates(problem)
    coarse, fine = (step_sample(fit, heat, tokens, steps) for steps in (_COARSE_STEPS, _FINE_STEPS))
    begun = []
    for order_name, order in _device_orders(problem):
        groups = _groups(problem, order)
        seconds = group_seconds(rates, groups, coarse)
        room = np.array([problem.capacities()[members].sum() for members in groups])
        for start_name, start in _starts(groups, room, heat):
            boundaries, step_s = improve(start, coarse, seconds, room, _COARSE_SHIFTS)
            begun.append((step_s, f"{order_name}, {start_name}", groups, room, boundaries))
    begun.sort(key=lambda item: item[0])
    for _, name, groups, room, boundaries in begun[:_FINE_SEARCHES]:
        seconds = group_seconds(rates, groups, fine)
        boundaries, _ = improve(boundaries, fine, seconds, room, _FINE_SHIFTS)
        yield name, _deal(problem, groups, boundaries, heat)


def _starts(
    groups: list[list[int]], capacities: NDArray[np.int64], heat: NDArray[np.int64]
) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Boundaries to begin from, each within capacity."""
    num_layers, num_experts = heat.shape
    total = heat.size
    hottest = np.argsort(-heat, axis=None, kind="stable")
    layers = np.arange(total)

    def filled(order: NDArray[np.intp], room: NDArray[np.int64]) -> NDArray[np.int64]:
        group = np.empty(total, dtype=np.int64)
        group[order] = np.repeat(np.arange(len(room)), np.minimum(room, total))[:total]
        sizes = np.stack(
            [(group.reshape(num_layers, num_experts) == g).sum(axis=1) for g in range(len(room))], axis=1
        )
        return np.concatenate([np.zeros((num_layers, 1), dtype=np.int64), np.cumsum(sizes, axis=1)], axis=1)

    yield "hottest first", filled(hottest, capacities)
    yield "whole layers", filled(layers, capacities)
    # Every layer the same shares: deal experts out rank by rank, all layers of one rank together.
    by_rank = np.arange(total).reshape(num_layers, num_experts).T.ravel()
    yield "even shares", filled(by_rank, capacities)
    if len(groups) > _MOST_GROUPS_TO_LEAVE_OUT:
        return
    for left_out in range(1, len(groups)):
        room = capacities.copy()
        room[left_out] = 0
        if room.sum() >= total:
            yield f"without group {left_out}", filled(hottest, room)


def _deal(
    problem: PlanningProblem, groups: list[list[int]], boundaries: NDArray[np.int64], heat: NDArray[np.int64]
) -> HolderTable:
    """Blocks to devices: a group's members share each block by the room they have left."""
    rank_to_expert = np.argsort(-heat, axis=1, kind="stable")
    room = problem.capacities()
    read_s = expert_rates(problem).read_s
    holders = np.empty(heat.shape, dtype=np.int16)
    for row, edges in enumerate(boundaries):
        for members, start, end in zip(groups, edges[:-1], edges[1:], strict=True):
            experts = rank_to_expert[row, start:end]
            quotas = baselines.proportional(room[members], len(experts)) if len(experts) else np.zeros(0, int)
            holders[row, experts] = _least_loaded(
                heat[row, experts], np.array(members), quotas, read_s[members]
            )
            np.subtract.at(room, holders[row, experts], 1)
    return HolderTable.from_single(holders)


def _least_loaded(
    heat: NDArray[np.int64],
    members: NDArray[np.int64],
    quotas: NDArray[np.int64],
    read_s: NDArray[np.float64],
) -> NDArray[np.int64]:
    """A member for each expert, hottest first: the one with least work so far that has quota left."""
    if len(members) == 1:
        return np.full(len(heat), members[0])
    load = np.zeros(len(members))
    free = quotas.copy()
    chosen = np.empty(len(heat), dtype=np.int64)
    for index, value in enumerate(heat.tolist()):
        member = int(np.argmin(np.where(free > 0, load, np.inf)))
        chosen[index] = members[member]
        load[member] += value * read_s[member]
        free[member] -= 1
    return chosen
