"""What the choice among replicas weighs, from the cost model; a plan carries it to the dispatcher."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from placement.assign import ReplicaCosts
from placement.cost import device_seconds, expert_rates
from placement.plan import PlannedWorker
from placement.problem import PlanningProblem


def replica_costs(problem: PlanningProblem) -> ReplicaCosts:
    """The cost model's time of a device that is asked for one row: without an expert, and for each one."""
    rates = expert_rates(problem)
    none, one = np.zeros((2, len(problem.devices)), dtype=np.int64)
    one += 1
    ask_s = device_seconds(rates, one, none, none)
    return ReplicaCosts(ask_s, device_seconds(rates, one, one, one) - ask_s)


def priced_workers(problem: PlanningProblem) -> tuple[PlannedWorker, ...]:
    """The problem's workers as a plan names them: with their costs."""
    costs = replica_costs(problem)
    return tuple(
        replace(device.worker, ask_s=ask_s, expert_s=expert_s)
        for device, ask_s, expert_s in zip(
            problem.devices, costs.ask_s.tolist(), costs.expert_s.tolist(), strict=True
        )
    )
