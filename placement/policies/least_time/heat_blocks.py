"""Where the planner's search begins: blocks of like heat on groups of like devices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from placement.cost.rates import expert_rates
from placement.cost.sharing import has_message_costs
from placement.given.problem import PlanningProblem
from placement.policies.baselines import fixed
from placement.policies.least_time.boundary_search import (
    HeatSample,
    group_messages_seconds,
    group_seconds,
    heat_sample,
    improve,
)

# Steps and shifts of the search. With many groups it only finds the region, since single experts are moved
# afterwards. With few groups it is cheap to go on, and that finds what single moves miss: a whole layer home.
_STEPS, _SHIFTS = 80, (64, 32, 16)
_FINE_STEPS, _FINE_SHIFTS, _FINE_SEARCHES = 600, (8, 4, 2, 1), 2
MOST_GROUPS_FOR_FINE = 4
# With more groups than this, leaving one out is what the search itself finds.
_MOST_GROUPS_TO_LEAVE_OUT = 4
# More groups than this cost search time and gain nothing: their blocks would hold an expert or two a layer.
_MOST_GROUPS = 12
_LARGEST_TOLERANCE = 1e3


@dataclass(frozen=True, slots=True, eq=False)
class HeatBlocks:
    """In each layer a block of experts for each group of devices, hottest first.

    `boundaries`: int64 [num_layers, num_groups + 1], from 0 to num_experts, ascending.
    """

    name: str
    groups: tuple[tuple[int, ...], ...]
    boundaries: NDArray[np.int64]

    def holders(self, problem: PlanningProblem) -> NDArray[np.int64]:
        """Blocks to devices by the counts of `problem.stats`, int64 [num_layers, num_experts].

        Members of a group share its block by the room they have left.
        """
        stats = fixed.require_stats(problem, "least-time")
        return _deal(problem, [list(group) for group in self.groups], self.boundaries, stats.frequencies())


def search_heat_blocks(
    problem: PlanningProblem, ranked: NDArray[np.integer], trace: NDArray[np.integer]
) -> list[HeatBlocks]:
    """Searched boundaries, the fastest on a sample of `trace` first.

    Args:
        ranked: heat [num_layers, num_experts] from other text than `trace`: on its own, the experts that a
            short text happens not to use would look as if nobody ever asked for them.
    """
    tokens, rates, capacities = problem.workload.tokens_per_step, expert_rates(problem), problem.capacities()

    def search_from(form: HeatBlocks, steps: HeatSample, shifts: Sequence[int]) -> tuple[float, HeatBlocks]:
        groups = [list(group) for group in form.groups]
        room = np.array([capacities[members].sum() for members in groups])
        seconds = group_seconds(rates, groups, steps)
        messages_s = group_messages_seconds(rates, groups, steps) if has_message_costs(rates) else None
        boundaries, step_s = improve(form.boundaries, steps, seconds, room, shifts, messages_s)
        return step_s, replace(form, boundaries=boundaries)

    coarse = heat_sample(trace, ranked, tokens, _STEPS)
    begun = [search_from(form, coarse, _SHIFTS) for form in _begin(problem, ranked)]
    forms = [form for _, form in sorted(begun, key=lambda item: item[0])]
    if max(len(form.groups) for form in forms) > MOST_GROUPS_FOR_FINE:
        return forms
    fine = heat_sample(trace, ranked, tokens, _FINE_STEPS)
    finished = [search_from(form, fine, _FINE_SHIFTS) for form in forms[:_FINE_SEARCHES]]
    return [form for _, form in sorted(finished, key=lambda item: item[0])]


def _begin(problem: PlanningProblem, ranked: NDArray[np.integer]) -> Iterator[HeatBlocks]:
    """Every order of devices with every start."""
    capacities = problem.capacities()
    for order_name, order in _device_orders(problem):
        groups = _groups(problem, order)
        room = np.array([capacities[members].sum() for members in groups])
        for start_name, start in _starts(groups, room, ranked):
            yield HeatBlocks(f"{order_name}, {start_name}", tuple(map(tuple, groups)), start)


def _device_orders(problem: PlanningProblem) -> Iterator[tuple[str, list[int]]]:
    """Which devices get hotter experts, each order once.

    Home before remote; by memory bandwidth alone; by bandwidth for each expert there is room for, since a
    small box shares the load evenly only if what little it holds is hot.
    """
    bandwidth = np.array([device.bandwidth_bytes_per_s for device in problem.devices])
    home_first = fixed.by_speed(problem)
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
        first.first_expert_s(problem.expert_bytes) / second.first_expert_s(problem.expert_bytes),
        first.bandwidth_bytes_per_s / second.bandwidth_bytes_per_s,
        first.link_bytes_per_s / second.link_bytes_per_s,
    )
    return all(1 / tolerance <= ratio <= tolerance for ratio in ratios)


def _starts(
    groups: list[list[int]], capacities: NDArray[np.int64], heat: NDArray[np.floating] | NDArray[np.integer]
) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Boundaries to begin from, each within capacity."""
    num_layers, num_experts = heat.shape
    total = heat.size
    hottest = np.argsort(-heat, axis=None, kind="stable")
    layers = np.arange(total)

    def fill(order: NDArray[np.intp], room: NDArray[np.int64]) -> NDArray[np.int64]:
        group = np.empty(total, dtype=np.int64)
        group[order] = np.repeat(np.arange(len(room)), np.minimum(room, total))[:total]
        sizes = np.stack(
            [(group.reshape(num_layers, num_experts) == g).sum(axis=1) for g in range(len(room))], axis=1
        )
        return np.concatenate([np.zeros((num_layers, 1), dtype=np.int64), np.cumsum(sizes, axis=1)], axis=1)

    yield "hottest first", fill(hottest, capacities)
    if len(groups) <= MOST_GROUPS_FOR_FINE:
        yield "whole layers", fill(layers, capacities)
    # Every layer the same shares: deal experts out rank by rank, all layers of one rank together.
    by_rank = np.arange(total).reshape(num_layers, num_experts).T.ravel()
    yield "even shares", fill(by_rank, capacities)
    if len(groups) > _MOST_GROUPS_TO_LEAVE_OUT:
        return
    for left_out in range(1, len(groups)):
        room = capacities.copy()
        room[left_out] = 0
        if room.sum() >= total:
            yield f"without group {left_out}", fill(hottest, room)


def _deal(
    problem: PlanningProblem,
    groups: list[list[int]],
    boundaries: NDArray[np.int64],
    heat: NDArray[np.floating] | NDArray[np.integer],
) -> NDArray[np.int64]:
    """A group's members share each block by the room they have left."""
    rank_to_expert = np.argsort(-heat, axis=1, kind="stable")
    room = problem.capacities()
    read_s = expert_rates(problem).read_s
    holders = np.empty(heat.shape, dtype=np.int64)
    for row, edges in enumerate(boundaries):
        for members, start, end in zip(groups, edges[:-1], edges[1:], strict=True):
            experts = rank_to_expert[row, start:end]
            quotas = fixed.proportional(room[members], len(experts)) if len(experts) else np.zeros(0, int)
            holders[row, experts] = _share_by_load(
                heat[row, experts], np.array(members), quotas, read_s[members]
            )
            np.subtract.at(room, holders[row, experts], 1)
    return holders


def _share_by_load(
    heat: NDArray[np.floating] | NDArray[np.integer],
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
