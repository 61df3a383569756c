"""What has to move when one plan takes over from another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from placement.errors import PlanError
from placement.plan import Plan
from placement.units import size


@dataclass(frozen=True, slots=True)
class Transfer:
    """One expert of MoE layer row `row`, from worker `source` to worker `destination`."""

    row: int
    expert: int
    source: int
    destination: int


def transfers(old: Plan, new: Plan) -> tuple[Transfer, ...]:
    """Copies that give `new` its experts, by destination, layer, expert; each from a worker of the same node
    if one holds it, else from the first that does.

    Raises:
        PlanError: the plans are not of one model in one form on the same workers.
    """
    if old.fingerprint != new.fingerprint or old.layers != new.layers:
        raise PlanError(
            f"new plan: expected one for {old.model} with experts in {old.form} of "
            f"{size(old.mean_expert_bytes)}, found {new.model} in {new.form} of {size(new.mean_expert_bytes)}"
        )
    names = [tier.name for tier in old.tiers]
    owners = [(tier.name, tier.worker) for tier in old.tiers]
    if [(tier.name, tier.worker) for tier in new.tiers] != owners:
        raise PlanError(
            f"new plan: expected the workers of the running one ({', '.join(names)}), in that order and with "
            "the same devices, found "
            f"{', '.join(worker.name for worker in new.tiers)}"
        )
    found = []
    for destination, worker in enumerate(new.tiers):
        missing = new.holder_table.mask(destination) & ~old.holder_table.mask(destination)
        for row, expert in np.argwhere(missing).tolist():
            holders = old.holder_table.layers[row].of(expert)
            near = [h for h in holders if old.tiers[h].node == worker.node]
            found.append(Transfer(row, expert, (near or holders)[0], destination))
    return tuple(found)
