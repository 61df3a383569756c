"""Expert locations that SGLang starts from: `--init-expert-location`.

Forms as read by sgl-project/sglang, python/sglang/srt/eplb/expert_location.py: an object with either
`physical_to_logical_map` [layers, slots] and nothing else, or `logical_count` [layers, experts]. The layer
axis covers all layers of the trunk.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placement.errors import PlanError
from placement.files.atomic import replacing
from placement.given.stats import RoutingStats
from placement.model_shape import ModelShape
from placement.plan import Plan


@dataclass(frozen=True, slots=True, eq=False)
class ExpertLocation:
    """Where SGLang is to put experts: equal numbers of slots on equal GPUs, some holding copies.

    `physical_to_logical`: int64 [num_hidden_layers, num_slots], slots of rank r at r * num_slots / num_ranks
    and on.
    """

    physical_to_logical: NDArray[np.int64]
    num_ranks: int
    num_redundant_experts: int

    def arguments(self, path: str | os.PathLike[str]) -> list[str]:
        """Options of `sglang.launch_server` that go with a file saved at `path`."""
        return [
            "--ep-size",
            str(self.num_ranks),
            "--ep-num-redundant-experts",
            str(self.num_redundant_experts),
            "--init-expert-location",
            os.fspath(path),
        ]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON for `--init-expert-location`; SGLang accepts no other key beside the map."""
        with replacing(path) as file:
            file.write(json.dumps({"physical_to_logical_map": self.physical_to_logical.tolist()}).encode())


def expert_location(
    plan: Plan, shape: ModelShape, ranks: Sequence[str], stats: RoutingStats | None = None
) -> ExpertLocation:
    """A plan as SGLang can carry it out: one worker a rank, all with as many slots as the fullest needs.

    Ranks that hold fewer experts in a layer get copies of the hottest ones they do not hold (the lowest
    numbers without `stats`); SGLang reserves those slots anyway.

    Args:
        ranks: names of the plan's workers, in rank order. Experts only of other workers cannot be placed.

    Raises:
        PlanError: a plan of another model, an unknown worker, or an expert that no rank holds.
    """
    plan.check(shape)
    if not ranks or len(set(ranks)) != len(ranks):
        raise PlanError(f"ranks: expected different workers of the plan, found {list(ranks)}")
    held = np.stack([plan.holder_table.mask(plan.tier_index(name)) for name in ranks])
    homeless = np.argwhere(~held.any(axis=0))
    if len(homeless):
        row, expert = homeless[0]
        raise PlanError(
            f"expert {expert} of layer {plan.moe_layers[row]} is on none of {', '.join(ranks)} "
            f"({len(homeless)} experts are not): expected the ranks to hold the whole model"
        )
    num_slots = int(held.sum(axis=2).max())
    # Enough for the dense layers of the file too, where each expert must have a slot all the same.
    num_slots = max(num_slots, -(-shape.num_experts // len(ranks)))
    every = np.tile(np.arange(num_slots * len(ranks)) % shape.num_experts, (shape.num_hidden_layers, 1))
    for row, layer in enumerate(shape.moe_layers):
        heat = stats.counts[row].astype(np.int64) if stats else np.zeros(shape.num_experts, dtype=np.int64)
        hottest_first = np.argsort(-heat, kind="stable")
        slots = []
        for mine in held[:, row]:
            extra = hottest_first[~mine[hottest_first]][: num_slots - int(mine.sum())]
            slots.append(np.concatenate([np.flatnonzero(mine), extra]))
        every[layer] = np.concatenate(slots)
    return ExpertLocation(every, len(ranks), num_slots * len(ranks) - shape.num_experts)


def save_logical_count(stats: RoutingStats, shape: ModelShape, path: str | os.PathLike[str]) -> None:
    """Write counts for `--init-expert-location`, for SGLang to make its own balanced placement from.

    Raises:
        RoutingFileError: statistics of another model.
    """
    stats.check(shape)
    counts = np.zeros((shape.num_hidden_layers, shape.num_experts), dtype=np.int64)
    counts[list(shape.moe_layers)] = stats.counts.astype(np.int64)
    with replacing(path) as file:
        file.write(json.dumps({"logical_count": counts.tolist()}).encode())
