"""Which workers hold which expert: one table, replicas allowed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

NO_WORKER = -1


@dataclass(frozen=True, slots=True, eq=False)
class LayerHolders:
    """One layer's row of a HolderTable, laid out for the choice among replicas.

    `single` is int16 [num_experts]: the worker of an expert that only one worker holds, NO_WORKER where
    several do; those are in `replicas` (expert -> workers, ascending), and only those.
    """

    single: NDArray[np.int16]
    replicas: dict[int, tuple[int, ...]]

    def of(self, expert: int) -> tuple[int, ...]:
        """Workers that hold `expert`, ascending."""
        return self.replicas.get(expert) or (int(self.single[expert]),)


@dataclass(frozen=True, slots=True, eq=False)
class HolderTable:
    """Holders of every expert: int16 [num_moe_layers, num_experts, max_holders].

    Worker indices ascend along the last axis, padded with NO_WORKER behind. An expert that nobody holds
    has NO_WORKER in front; a Plan refuses such a table.
    """

    table: NDArray[np.int16]
    layers: tuple[LayerHolders, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        table = np.ascontiguousarray(self.table, dtype=np.int16)
        table.setflags(write=False)
        object.__setattr__(self, "table", table)
        object.__setattr__(self, "layers", tuple(_layer_holders(row) for row in table))

    @classmethod
    def from_single(cls, workers: NDArray[np.integer]) -> HolderTable:
        """One holder an expert. `workers`: int [num_moe_layers, num_experts]."""
        return cls(workers.astype(np.int16)[:, :, None])

    @classmethod
    def from_masks(cls, masks: NDArray[np.bool_]) -> HolderTable:
        """`masks`: bool [num_workers, num_moe_layers, num_experts], true where held."""
        held = masks.transpose(1, 2, 0)
        layer, expert, worker = np.nonzero(held)
        num_holders = held.sum(axis=2)
        # np.nonzero lists one expert's holders together, ascending: rank is the distance to the first.
        first = np.cumsum(num_holders.ravel()) - num_holders.ravel()
        rank = np.arange(len(worker)) - np.repeat(first, num_holders.ravel())
        table = np.full(
            (*num_holders.shape, max(1, int(num_holders.max(initial=0)))), NO_WORKER, dtype=np.int16
        )
        table[layer, expert, rank] = worker
        return cls(table)

    def without(self, workers: Collection[int]) -> HolderTable:
        """The table when `workers` are gone; what only they held is held by nobody."""
        kept = np.where(np.isin(self.table, list(workers)), np.int16(NO_WORKER), self.table)
        order = np.argsort(kept == NO_WORKER, axis=2, kind="stable")
        return HolderTable(np.take_along_axis(kept, order, axis=2))

    @property
    def num_layers(self) -> int:
        return int(self.table.shape[0])

    @property
    def num_experts(self) -> int:
        return int(self.table.shape[1])

    @property
    def has_replicas(self) -> bool:
        return any(layer.replicas for layer in self.layers)

    def mask(self, worker: int) -> NDArray[np.bool_]:
        """bool [num_moe_layers, num_experts]: the experts `worker` holds."""
        held: NDArray[np.bool_] = (self.table == worker).any(axis=2)
        return held

    def experts_per_worker(self, num_workers: int) -> NDArray[np.int64]:
        """int64 [num_workers]: experts each worker holds, over all layers."""
        return np.bincount(self.table[self.table != NO_WORKER], minlength=num_workers).astype(np.int64)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HolderTable) and np.array_equal(self.table, other.table)

    def __hash__(self) -> int:
        return hash(self.table.tobytes())


def _layer_holders(row: NDArray[np.int16]) -> LayerHolders:
    num_holders = (row != NO_WORKER).sum(axis=1)
    several = num_holders > 1
    single = np.where(several, np.int16(NO_WORKER), row[:, 0])
    single.setflags(write=False)
    replicas = {
        int(expert): tuple(row[expert, : num_holders[expert]].tolist()) for expert in np.flatnonzero(several)
    }
    return LayerHolders(single, replicas)
