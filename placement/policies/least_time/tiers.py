"""Memory of one box, fastest first: no expert stays in a slower one while a faster one has room for it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from placement.cost.rates import expert_rates
from placement.given.problem import PlanningProblem
from placement.holders import HolderTable


def faster_beside(problem: PlanningProblem) -> NDArray[np.bool_]:
    """bool [num_devices, num_devices]: [d, f] where f, in the box of d, is the better place for any expert.

    Its memory is faster, its arithmetic no slower (a disk has its CPU's), and it is asked as quickly.
    """
    rates = expert_rates(problem)
    nodes = np.array([device.tier.node for device in problem.devices])
    same_box = nodes[:, None] == nodes
    better: NDArray[np.bool_] = (
        same_box
        & (rates.read_s[:, None] > rates.read_s)
        & (rates.compute_s[:, None] >= rates.compute_s)
        & (rates.expert_s[:, None] >= rates.expert_s)
        & (rates.round_trip_s[:, None] >= rates.round_trip_s)
        & (rates.row_wire_s[:, None] >= rates.row_wire_s)
    )
    return better


def useless_on_disk(
    problem: PlanningProblem, faster: NDArray[np.bool_], masks: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Where a disk's copy never helps, since a faster memory of its box has the expert: the shape of `masks`.

    What is read from a disk takes memory's bandwidth and the CPU's time too.

    Args:
        faster: the problem's `faster_beside`.
        masks: bool [num_devices, num_layers, num_experts], true where held.
    """
    useless = np.zeros_like(masks)
    for index, device in enumerate(problem.devices):
        if device.tier.kind == "disk" and faster[index].any():
            useless[index] = masks[faster[index]].any(axis=0)
    return useless


def fill_fast_memory(problem: PlanningProblem, table: HolderTable) -> HolderTable:
    """`table` with the room of faster memory filled from slower memory of the same box, best gains first.

    An expert of a slower device moves to a `faster_beside` one that has room, unless one of those holds it.
    Disks drop what is `useless_on_disk`.
    """
    faster = faster_beside(problem)
    if not faster.any():
        return table
    masks = table.masks(len(problem.devices))
    before = masks.copy()
    masks &= ~useless_on_disk(problem, faster, masks)
    room = problem.capacities() - masks.sum(axis=(1, 2))
    read_s = expert_rates(problem).read_s
    heat = np.ones(masks.shape[1:]) if problem.stats is None else problem.stats.frequencies()
    for target in np.argsort(read_s, kind="stable").tolist():
        slower = np.flatnonzero(faster[:, target])
        if room[target] <= 0 or not len(slower):
            continue
        movable = masks[slower] & ~masks[target]
        for row, device in enumerate(slower):
            movable[row] &= ~masks[faster[device]].any(axis=0)
        place, layer, expert = np.nonzero(movable)
        gain = (heat[layer, expert] + 1e-9) * (read_s[slower] - read_s[target])[place]
        seen: set[tuple[int, int]] = set()
        for index in np.argsort(-gain, kind="stable").tolist():
            if room[target] <= 0:
                break
            cell = (int(layer[index]), int(expert[index]))
            source = int(slower[place[index]])
            masks[(source, *cell)] = False
            room[source] += 1
            if cell not in seen:
                masks[(target, *cell)] = True
                room[target] -= 1
                seen.add(cell)
    return table if (masks == before).all() else HolderTable.from_masks(masks)
