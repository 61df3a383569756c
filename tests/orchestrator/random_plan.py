"""Plans that put every expert anywhere."""

from __future__ import annotations

import numpy as np

from placement.holders import HolderTable
from placement.model_shape import ModelShape
from placement.plan import LOCAL_WORKER, Plan, PlannedTier, like_layers


def random_plan(
    shape: ModelShape,
    num_workers: int,
    seed: int,
    *,
    replicas: float = 0.0,
    head_holds: bool = True,
    devices: int = 1,
) -> Plan:
    """Every expert on a drawn device, some on several; `num_workers` besides the head, of so many each."""
    rng = np.random.default_rng(seed)
    boxes = ([LOCAL_WORKER] if head_holds or not num_workers else []) + [f"w{i}" for i in range(num_workers)]
    owners = {f"{box}-{i}" if i else box: box for box in boxes for i in range(devices)}
    names = list(owners)
    shares = rng.dirichlet(np.ones(len(names)))
    masks = np.zeros((len(names), shape.num_moe_layers, shape.num_experts), np.bool_)
    chosen = rng.choice(len(names), size=masks.shape[1:], p=shares)
    for index in range(len(names)):
        masks[index] = (chosen == index) | (rng.random(chosen.shape) < replicas)
    expert_bytes = shape.expert_bytes(32)
    return Plan(
        model=shape.name,
        fingerprint=shape.fingerprint,
        layers=like_layers(shape.moe_layers, "float32", expert_bytes),
        dtype="float32",
        tiers=tuple(
            PlannedTier(
                name, "here", "cpu", "ram", shape.num_routed_experts * expert_bytes, worker=owners[name]
            )
            for name in names
        ),
        holder_table=HolderTable.from_masks(masks),
        policy="random",
        epoch=seed,
    )
