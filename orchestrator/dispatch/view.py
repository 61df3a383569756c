"""The cluster as one pass sees it: who holds what, where each worker is reached, what asking it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from placement.assign.one_step import ReplicaCosts
from placement.holders import NO_WORKER, HolderTable
from placement.plan import Plan

NOBODY: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class WorkerAddress:
    """Where one worker process is reached.

    `public_key` is its CURVE key in Z85, None where the transport is plain. `instance` is the random number
    of the process: another one at the same endpoints means that the worker was started again.
    """

    endpoint: str
    pulse_endpoint: str
    public_key: bytes | None
    instance: int


@dataclass(frozen=True, eq=False)
class ClusterView:
    """An unchanging picture of the cluster; a pass keeps one from its beginning to its end.

    Worker indices are those of `plan.workers` and mean the same worker in every view of a run: later plans
    append tiers of known workers, and new workers come last.

    Attributes:
        plan: with the view's epoch; it may have tiers that rescue or migration added.
        absent: workers not to be asked at all.
        addresses: of the workers outside this process that were greeted, by worker index.
    """

    plan: Plan
    absent: frozenset[int] = NOBODY
    addresses: Mapping[int, WorkerAddress] = field(default_factory=dict)

    @property
    def epoch(self) -> int:
        return self.plan.epoch

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Worker names by index."""
        return tuple(worker.name for worker in self.plan.workers)

    @cached_property
    def local_worker(self) -> int | None:
        """Index of the worker inside the head's process."""
        return self.plan.local_worker

    @cached_property
    def costs(self) -> ReplicaCosts:
        """What the choice among replicas weighs, by tier."""
        return self.plan.replica_costs

    @cached_property
    def worker_of_tier(self) -> NDArray[np.int16]:
        """Of each tier; one more at the end, NO_WORKER, for the tier -1 of an expert that nobody holds."""
        return np.append(self.plan.worker_of_tier, np.int16(NO_WORKER))

    @cached_property
    def sharing(self) -> frozenset[int]:
        """Workers that hold an expert that others hold too."""
        table = self.holders.table
        shared = table[table[:, :, 1] != NO_WORKER] if table.shape[2] > 1 else table[:0]
        workers = self.worker_of_tier.take(shared[shared != NO_WORKER])
        return frozenset(workers.tolist())

    @property
    def holders(self) -> HolderTable:
        """Of every expert, tiers of absent workers left out."""
        return self.without(NOBODY)

    def without(self, workers: frozenset[int]) -> HolderTable:
        """`holders` less the tiers of further workers; what only they held is held by nobody."""
        gone = self.absent | workers
        found = self._without.get(gone)
        if found is None:
            found = self._without[gone] = self.plan.without(gone) if gone else self.plan.holder_table
        return found

    def orphans(self, workers: frozenset[int] = NOBODY) -> NDArray[np.bool_]:
        """Experts that nobody holds when further `workers` are gone: bool [num_moe_layers, num_experts]."""
        orphans: NDArray[np.bool_] = self.without(workers).table[:, :, 0] == NO_WORKER
        return orphans

    @cached_property
    def is_complete(self) -> bool:
        """Whether every expert has a holder: a pass can run."""
        return not self.orphans().any()

    def missing_bytes(self) -> int:
        """What the experts that nobody holds take."""
        return int(self.orphans().sum(axis=1) @ self.plan.expert_bytes)

    @cached_property
    def _without(self) -> dict[frozenset[int], HolderTable]:
        return {}
