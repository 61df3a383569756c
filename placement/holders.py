"""Which workers hold which expert: one table, replicas allowed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

NO_WORKER = -1


@dataclass(frozen=True, eq=False)
class LayerHolders:
    """One layer's row of a HolderTable, laid out for the choice among replicas when that first asks.

    `table` is int16 [num_experts, max_holders]; `single` int16 [num_experts]: the worker of an expert that
    only one worker holds, NO_WORKER elsewhere; `has_replicas`: some expert has several holders.
    """

    table: NDArray[np.int16]
    single: NDArray[np.int16]
    has_replicas: bool

    def of(self, expert: int) -> tuple[int, ...]:
        """Workers that hold `expert`, ascending; `(NO_WORKER,)` where nobody does."""
        return self.workers[expert] or (NO_WORKER,)

    @cached_property
    def workers(self) -> list[tuple[int, ...]]:
        """Of each expert, ascending; one more at the end, without workers, for the expert -1."""
        counts = (self.table != NO_WORKER).sum(axis=1).tolist()
        rows = self.table.tolist()
        return [*(tuple(row[:count]) for row, count in zip(rows, counts, strict=True)), ()]

    @cached_property
    def ranks(self) -> NDArray[np.uint16]:
        """The order in which experts are given workers: fewest holders first, then the expert's number.

        uint16 [num_experts + 1]; experts without any holder come last, behind them the expert -1.
        """
        counts = (self.table != NO_WORKER).sum(axis=1)
        order = np.argsort(np.where(counts == 0, self.table.shape[1] + 1, counts), kind="stable")
        ranks = np.empty(len(counts) + 1, dtype=np.uint16)
        ranks[order] = np.arange(len(counts))
        ranks[-1] = len(counts)
        return ranks

    @cached_property
    def in_order(self) -> NDArray[np.int16]:
        """Workers by their experts' rank: int16 [max_holders, num_experts + 1], padded with NO_WORKER."""
        workers = np.full((self.table.shape[1], len(self.table) + 1), NO_WORKER, dtype=np.int16)
        workers[:, self.ranks[:-1]] = self.table.T
        return workers

    @cached_property
    def several_from(self) -> int:
        """Experts with one holder have lower ranks, all others have this or more."""
        return int(np.count_nonzero((self.table != NO_WORKER).sum(axis=1) == 1))

    @cached_property
    def rank_list(self) -> list[int]:
        """`ranks` as plain numbers."""
        return list(self.ranks.tolist())


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

    def renumbered(self, numbers: Sequence[int]) -> HolderTable:
        """The same placement where worker i is called `numbers[i]`; these ascend."""
        # The entry behind the last one is that of NO_WORKER, which is -1.
        names = np.array([*numbers, NO_WORKER], dtype=np.int16)
        return HolderTable(names[self.table])

    @property
    def num_layers(self) -> int:
        return int(self.table.shape[0])

    @property
    def num_experts(self) -> int:
        return int(self.table.shape[1])

    @property
    def has_replicas(self) -> bool:
        return any(layer.has_replicas for layer in self.layers)

    def mask(self, worker: int) -> NDArray[np.bool_]:
        """bool [num_moe_layers, num_experts]: the experts `worker` holds."""
        held: NDArray[np.bool_] = (self.table == worker).any(axis=2)
        return held

    def masks(self, num_workers: int) -> NDArray[np.bool_]:
        """bool [num_workers, num_moe_layers, num_experts], as `from_masks` takes them."""
        return np.stack([self.mask(worker) for worker in range(num_workers)])

    def experts_per_worker(self, num_workers: int) -> NDArray[np.int64]:
        """int64 [num_workers]: experts each worker holds, over all layers."""
        return np.bincount(self.table[self.table != NO_WORKER], minlength=num_workers).astype(np.int64)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HolderTable) and np.array_equal(self.table, other.table)

    def __hash__(self) -> int:
        return hash(self.table.tobytes())


def _layer_holders(row: NDArray[np.int16]) -> LayerHolders:
    if row.shape[1] == 1:
        return LayerHolders(row, row[:, 0], False)
    several = row[:, 1] != NO_WORKER
    single = np.where(several, np.int16(NO_WORKER), row[:, 0])
    single.setflags(write=False)
    return LayerHolders(row, single, bool(several.any()))
