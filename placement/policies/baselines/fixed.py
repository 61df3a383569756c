"""Placement policies to compare with: what other engines do, or what needs no thought. One function each.

Each gets a problem that fits and returns who holds what; see `policies.Policy`.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from placement.errors import InputError, PlanDoesNotFit
from placement.given.problem import PlanningDevice, PlanningProblem
from placement.given.stats import RoutingStats
from placement.holders import HolderTable
from placement.units import size


def one_box(problem: PlanningProblem) -> HolderTable:
    """The head's node alone: the hottest experts to its fastest memory, the rest below, disk last.

    Without statistics in the order of the layers.
    """
    home = [i for i in by_speed(problem) if problem.devices[i].is_home]
    missing = problem.shape.num_routed_experts - int(problem.capacities()[home].sum())
    if missing > 0:
        raise PlanDoesNotFit(
            f"one box: {size(missing * problem.expert_bytes)} are missing on the head's node; give it a disk "
            "or more memory"
        )
    return fill(problem, home, hottest(problem) if problem.stats else layer_order(problem))


def uniform(problem: PlanningProblem) -> HolderTable:
    """Every layer's experts over all devices in proportion to their capacity, whatever the routing.

    Disks, which are large and slow, get none where memory holds all.
    """
    return HolderTable.from_single(_even_mix(problem).reshape(-1, problem.shape.num_experts))


def random(problem: PlanningProblem) -> HolderTable:
    """As many experts on each device as `uniform` puts there, which ones by lot (fixed seed)."""
    holders = np.random.default_rng(0).permutation(_even_mix(problem))
    return HolderTable.from_single(holders.reshape(-1, problem.shape.num_experts))


def whole_layers(problem: PlanningProblem) -> HolderTable:
    """Layer after layer into one device after another, fastest first; only a device's last layer is split.

    The experts move, attention stays at the head.
    """
    return fill(problem, by_speed(problem), layer_order(problem))


def hottest_first(problem: PlanningProblem) -> HolderTable:
    """The experts chosen most often, of all layers together, into the fastest memory.

    Devices are filled one after another: at home before other boxes, disks last, and among equals the one
    that answers for one expert soonest. The rank of an expert is its count; ties go to the lower layer,
    then the lower expert.
    """
    return fill(problem, by_speed(problem), hottest(problem))


def hottest_first_ties_spread(problem: PlanningProblem) -> HolderTable:
    """Like `hottest_first`, but of equally hot experts every layer in turn hands one to slower memory.

    Few tokens leave many experts unused. In `hottest_first` the last layers have all the slow places, and a
    layer that reads several of these at once waits longest.
    """
    counts = require_stats(problem, "hottest-first").counts.astype(np.int64)
    order = np.argsort(-counts, axis=1, kind="stable")
    behind = np.empty_like(counts)
    for row, experts in enumerate(order):
        descending = -counts[row, experts]
        ends = np.searchsorted(descending, descending, side="right")
        behind[row, experts] = ends - np.arange(len(experts))
    experts = np.lexsort((-behind.ravel(), -counts.ravel()))
    return fill(problem, by_speed(problem), experts)


def hottest_per_layer(problem: PlanningProblem) -> HolderTable:
    """Like `hottest_first`, but every layer gets the same room on every device (KTransformers-like)."""
    shape = problem.shape
    heat = require_stats(problem, "hottest-per-layer").counts.astype(np.int64)
    rank_to_expert = np.argsort(-heat, axis=1, kind="stable")
    capacities = problem.capacities()
    holders = np.full((shape.num_moe_layers, shape.num_experts), -1, dtype=np.int16)
    room = capacities.copy()
    next_rank = np.zeros(shape.num_moe_layers, dtype=np.int64)
    for device in by_speed(problem):
        for row in range(shape.num_moe_layers):
            # The first layers take what does not divide evenly.
            share = (capacities[device] + shape.num_moe_layers - 1 - row) // shape.num_moe_layers
            count = min(int(share), shape.num_experts - int(next_rank[row]))
            holders[row, rank_to_expert[row, next_rank[row] : next_rank[row] + count]] = device
            next_rank[row] += count
            room[device] -= count
    left_over = np.argwhere(holders < 0)
    slots = np.repeat(np.array(by_speed(problem)), room[by_speed(problem)].clip(max=len(left_over)))
    holders[tuple(left_over.T)] = slots[: len(left_over)]
    return HolderTable.from_single(holders)


def balanced_replicas(problem: PlanningProblem) -> HolderTable:
    """EPLB's rule: spare room becomes copies of the most loaded experts, then loads are packed evenly.

    DeepSeek's EPLB (`replicate_experts`, `balanced_packing`), layer by layer, devices taken as equal but
    for their room: each copy takes an equal part of its expert's load; the heaviest copy goes first, to
    the device with the least load that has room and no copy of it.
    """
    shape = problem.shape
    loads = require_stats(problem, "balanced-replicas").frequencies()
    capacities = problem.capacities()
    num_devices = len(capacities)
    masks = np.zeros((num_devices, shape.num_moe_layers, shape.num_experts), dtype=np.bool_)
    room = capacities.copy()
    for row in range(shape.num_moe_layers):
        layers_left = shape.num_moe_layers - row
        slots = -(-room // layers_left)
        # What must stay free for the layers behind this one.
        spare = int(room.sum()) - (layers_left - 1) * shape.num_experts
        total = min(int(slots.sum()), spare, shape.num_experts * num_devices)
        copies = _replicate(loads[row], total, int((slots > 0).sum()))
        _pack(loads[row], copies, slots.tolist(), masks[:, row])
        room -= masks[:, row].sum(axis=1)
    return HolderTable.from_masks(masks)


def by_speed(problem: PlanningProblem) -> list[int]:
    """Device indices: at home before other boxes, disks last, then by the time one expert takes."""

    def slowness(index: int) -> tuple[bool, bool, float]:
        device: PlanningDevice = problem.devices[index]
        return device.tier.kind == "disk", not device.is_home, device.first_expert_s(problem.expert_bytes)

    return sorted(range(len(problem.devices)), key=slowness)


def require_stats(problem: PlanningProblem, policy: str) -> RoutingStats:
    """Raises InputError without statistics."""
    if problem.stats is None:
        raise InputError(f"policy {policy} needs routing statistics: expected --stats FILE.npz")
    return problem.stats


def hottest(problem: PlanningProblem) -> NDArray[np.intp]:
    """Flat indices (layer-major) of all experts, most chosen first."""
    counts = require_stats(problem, "hottest-first").counts.astype(np.int64)
    return np.argsort(-counts, axis=None, kind="stable")


def layer_order(problem: PlanningProblem) -> NDArray[np.intp]:
    return np.arange(problem.shape.num_routed_experts)


def fill(problem: PlanningProblem, devices: Sequence[int], experts: NDArray[np.intp]) -> HolderTable:
    """Experts (flat indices) in the given order into devices in the given order, each up to its capacity."""
    capacities = np.minimum(problem.capacities()[list(devices)], len(experts))
    holders = np.empty(len(experts), dtype=np.int16)
    holders[experts] = np.repeat(np.array(devices, dtype=np.int16), capacities)[: len(experts)]
    return HolderTable.from_single(holders.reshape(-1, problem.shape.num_experts))


def _even_mix(problem: PlanningProblem) -> NDArray[np.int16]:
    """A device for each flat expert index, in proportion to capacity at every stretch of the sequence."""
    total = problem.shape.num_routed_experts
    capacities = problem.capacities()
    memory = np.where([device.tier.kind == "disk" for device in problem.devices], 0, capacities)
    quotas = proportional(memory if memory.sum() >= total else capacities, total)
    # Device d takes its j-th expert at time (j + 1/2) / quota.
    times = np.concatenate([(np.arange(quota) + 0.5) / quota for quota in quotas.tolist()])
    devices = np.repeat(np.arange(len(quotas), dtype=np.int16), quotas)
    return devices[np.argsort(times, kind="stable")]


def proportional(capacities: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Whole numbers that sum to `total`, in proportion to `capacities` and none above (largest remainder)."""
    quotas: NDArray[np.int64]
    quotas, remainders = np.divmod(capacities * total, capacities.sum())
    quotas[np.argsort(-remainders, kind="stable")[: total - int(quotas.sum())]] += 1
    return quotas


def _replicate(load: NDArray[np.float64], total: int, most: int) -> NDArray[np.int64]:
    """Copies of each expert, int64 [num_experts]; the next one goes to the largest load a copy."""
    copies = np.ones(len(load), dtype=np.int64)
    heap = [(-value, expert) for expert, value in enumerate(load.tolist())] if most > 1 else []
    heapq.heapify(heap)
    for _ in range(total - len(load)):
        if not heap:
            break
        _, expert = heapq.heappop(heap)
        copies[expert] += 1
        if copies[expert] < most:
            heapq.heappush(heap, (-load[expert] / copies[expert], expert))
    return copies


def _pack(
    load: NDArray[np.float64], copies: NDArray[np.int64], slots: list[int], masks: NDArray[np.bool_]
) -> None:
    """Place one layer's copies into `masks` [num_devices, num_experts].

    First copies are placed before second ones get what room is left, so that every expert has a holder.
    """
    free = slots.copy()
    per_copy = load / copies
    share = per_copy.tolist()
    # Load so far and number of each device with room, the least loaded first.
    heap = [(0.0, device) for device, room in enumerate(slots) if room > 0]
    for nth in range(int(copies.max())):
        wanted = np.flatnonzero(copies > nth)
        for expert in wanted[np.argsort(-per_copy[wanted], kind="stable")].tolist():
            holding = []
            while heap and masks[heap[0][1], expert]:
                holding.append(heapq.heappop(heap))
            if heap:
                device_load, device = heap[0]
                masks[device, expert] = True
                free[device] -= 1
                if free[device]:
                    heapq.heapreplace(heap, (device_load + share[expert], device))
                else:
                    heapq.heappop(heap)
            for entry in holding:
                heapq.heappush(heap, entry)
