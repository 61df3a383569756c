"""From one plan to another in steps that fit beside what is there: who takes on what, who lets go of what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from placement.experts import Experts
from placement.holders import HolderTable
from placement.plan import Plan


@dataclass(frozen=True, slots=True)
class Batch:
    """One step of a move.

    Attributes:
        plan: with the experts of this step where the target wants them; its epoch one higher.
        holds: what workers must hold before `plan` is used, by worker name.
        drops: what they may let go of once no plan before it is in flight.
        num_experts, num_bytes: that are loaded.
    """

    plan: Plan
    holds: Mapping[str, Experts]
    drops: Mapping[str, Experts]
    num_experts: int
    num_bytes: int


def next_batch(plan: Plan, target: HolderTable, room: Mapping[str, int]) -> Batch | None:
    """As much of the way to `target` as has room beside what is held now.

    An expert moves as a whole: from its holders in `plan` to those in `target`. Only whole boxes count: where
    a box has an expert already, it stays on its device there.

    Args:
        target: of the same tiers.
        room: bytes that a worker may hold for a while beyond what `plan` has it hold, by name.

    Returns:
        None where nothing is left to move, or nothing more has room.
    """
    tiers = plan.holder_table.masks(len(plan.tiers))
    wanted = _stay_on_their_devices(plan, tiers, target.masks(len(plan.tiers)))
    free = {worker.name: room.get(worker.name, 0) for worker in plan.workers}
    names = [worker.name for worker in plan.workers]
    owner = plan.worker_of_tier.tolist()
    after = tiers.copy()
    arrivals: list[tuple[int, int, int]] = []
    for row, expert in np.argwhere((tiers != wanted).any(axis=0)).tolist():
        num_bytes = plan.layers[row].expert_bytes
        new = np.flatnonzero(wanted[:, row, expert] & ~tiers[:, row, expert]).tolist()
        if any(free[names[owner[tier]]] < num_bytes for tier in new):
            continue
        for tier in new:
            free[names[owner[tier]]] -= num_bytes
            arrivals.append((tier, row, expert))
        after[:, row, expert] = wanted[:, row, expert]
    if (after == tiers).all():
        return None
    moved = replace(plan, holder_table=HolderTable.from_masks(after), epoch=plan.epoch + 1)
    return Batch(
        moved,
        _differing(plan, after & ~tiers),
        _differing(plan, tiers & ~after),
        len(arrivals),
        sum(plan.layers[row].expert_bytes for _, row, _ in arrivals),
    )


def _stay_on_their_devices(
    plan: Plan, now: NDArray[np.bool_], wanted: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """`wanted`, but an expert that a box holds already is where it is in that box."""
    found = wanted.copy()
    for worker in plan.workers:
        mine = list(worker.tiers)
        stays = now[mine].any(axis=0) & wanted[mine].any(axis=0)
        found[mine] = np.where(stays, now[mine], wanted[mine])
    return found


def _differing(plan: Plan, masks: NDArray[np.bool_]) -> dict[str, Experts]:
    """By worker name and layer, of bool [num_tiers, num_layers, num_experts]."""
    found: dict[str, Experts] = {}
    for worker in plan.workers:
        mask: NDArray[np.bool_] = np.logical_or.reduce(masks[list(worker.tiers)])
        if mask.any():
            found[worker.name] = {
                layer: tuple(np.flatnonzero(row).tolist())
                for layer, row in zip(plan.moe_layers, mask, strict=True)
                if row.any()
            }
    return found
