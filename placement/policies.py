"""Ways to place experts, one function each. A policy gets a problem that fits and returns who holds what."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from placement.errors import InputError
from placement.holders import HolderTable
from placement.problem import PlanningDevice, PlanningProblem


class Policy(Protocol):
    """Places every expert at least once, within every device's capacity; same problem, same answer."""

    def __call__(self, problem: PlanningProblem, /) -> HolderTable: ...


def hottest_first(problem: PlanningProblem) -> HolderTable:
    """The experts chosen most often, of all layers together, into the fastest memory.

    Devices are filled one after another: at home before other boxes, disks last, and among equals the one
    that answers for one expert soonest. The rank of an expert is its count; ties go to the lower layer,
    then the lower expert.

    Raises:
        InputError: no routing statistics.
    """
    if problem.stats is None:
        raise InputError("policy hottest-first needs routing statistics: expected --stats FILE.npz")
    hottest = np.argsort(-problem.stats.counts.astype(np.int64), axis=None, kind="stable")
    capacities = np.minimum(problem.capacities(), len(hottest))
    order = sorted(range(len(capacities)), key=lambda i: _slowness(problem.devices[i], problem.expert_bytes))
    holders = np.repeat(np.array(order, dtype=np.int16), capacities[order])[: len(hottest)]
    return _from_flat(hottest, holders, problem)


def uniform(problem: PlanningProblem) -> HolderTable:
    """Every layer's experts over all devices in proportion to their capacity, whatever the routing."""
    num_experts = problem.shape.num_routed_experts
    quotas = _proportional(problem.capacities(), num_experts)
    # Device d takes its j-th expert at time (j + 1/2) / quota: an even mix at every point of the sequence.
    times = np.concatenate([(np.arange(quota) + 0.5) / quota for quota in quotas.tolist()])
    devices = np.repeat(np.arange(len(quotas), dtype=np.int16), quotas)
    holders = devices[np.argsort(times, kind="stable")]
    return _from_flat(np.arange(num_experts), holders, problem)


POLICIES: Mapping[str, Policy] = MappingProxyType({"hottest-first": hottest_first, "uniform": uniform})


def named_policy(name: str) -> Policy:
    """Raises InputError for an unknown name, listing the known ones."""
    try:
        return POLICIES[name]
    except KeyError:
        raise InputError(f"policy {name!r}: expected {', '.join(POLICIES)}") from None


def _slowness(device: PlanningDevice, expert_bytes: int) -> tuple[bool, bool, float]:
    return device.worker.tier == "disk", not device.is_home, device.expert_seconds(expert_bytes)


def _proportional(capacities: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Whole numbers that sum to `total`, in proportion to `capacities` and none above (largest remainder)."""
    quotas: NDArray[np.int64]
    quotas, remainders = np.divmod(capacities * total, capacities.sum())
    quotas[np.argsort(-remainders, kind="stable")[: total - int(quotas.sum())]] += 1
    return quotas


def _from_flat(
    experts: NDArray[np.integer], holders: NDArray[np.int16], problem: PlanningProblem
) -> HolderTable:
    """`holders[i]` holds the expert of flat index `experts[i]` (layer-major)."""
    flat = np.empty(problem.shape.num_routed_experts, dtype=np.int16)
    flat[experts] = holders
    return HolderTable.from_single(flat.reshape(problem.shape.num_moe_layers, problem.shape.num_experts))
