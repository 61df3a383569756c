"""What the choice among replicas weighs, from the cost model; a plan carries it to the dispatcher."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from placement.assign.one_step import ReplicaCosts
from placement.cost.rates import expert_rates
from placement.cost.roofline import device_seconds
from placement.given.problem import PlanningProblem
from placement.plan import PlannedTier


def replica_costs(problem: PlanningProblem) -> ReplicaCosts:
    """The cost model's time of a device that is asked for one row, the head's software for it included."""
    rates = expert_rates(problem)
    one = np.ones(len(problem.devices), dtype=np.int64)
    first_s = device_seconds(rates, one, one, one)
    expert_s = device_seconds(rates, one, 2 * one, 2 * one) - first_s
    message_s = rates.message_s + rates.message_row_s
    return ReplicaCosts(np.maximum(first_s - expert_s, 0.0) + message_s, expert_s)


def priced_tiers(problem: PlanningProblem) -> tuple[PlannedTier, ...]:
    """The problem's tiers as a plan names them: with their costs."""
    costs = replica_costs(problem)
    return tuple(
        replace(device.tier, ask_s=ask_s, expert_s=expert_s)
        for device, ask_s, expert_s in zip(
            problem.devices, costs.ask_s.tolist(), costs.expert_s.tolist(), strict=True
        )
    )
