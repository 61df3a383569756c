"""The plans of a run, by epoch, and who is left to ask under each."""

from __future__ import annotations

from typing import NamedTuple

from placement.assign.one_step import ReplicaCosts
from placement.holders import HolderTable
from placement.plan import Plan


class PlanInUse(NamedTuple):
    """`table`: the plan's holders without the workers that are lost."""

    plan: Plan
    table: HolderTable
    costs: ReplicaCosts


class PlansInUse:
    """A pass keeps to the plan that it started under; all plans lose the same workers."""

    def __init__(self, plan: Plan) -> None:
        self.lost: set[int] = set()
        """Indices into the plans' `workers`."""
        self._by_epoch: list[PlanInUse] = []
        self.add(plan)

    def __getitem__(self, epoch: int) -> PlanInUse:
        return self._by_epoch[epoch]

    @property
    def newest_epoch(self) -> int:
        return len(self._by_epoch) - 1

    @property
    def newest(self) -> Plan:
        return self._by_epoch[-1].plan

    def add(self, plan: Plan) -> None:
        """From now on, passes start under `plan`."""
        self._by_epoch.append(PlanInUse(plan, plan.without(self.lost), plan.replica_costs))

    def lose(self, worker: int) -> bool:
        """Ask `worker` no more; False if it was lost before."""
        if worker in self.lost:
            return False
        self.lost.add(worker)
        self._by_epoch = [used._replace(table=used.plan.without(self.lost)) for used in self._by_epoch]
        return True
