"""A plan in figures: the rows of the table a user reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from placement.assign.many_steps import assign_steps
from placement.given.stats import RoutingStats
from placement.plan import Plan
from placement.routing.expectation import remote_layers_per_step, share_of_activations
from placement.routing.planning_text import spread_steps, text_of

# Tokens to look at where the dispatcher may choose among replicas.
_MOST_STEPS = 2000


@dataclass(frozen=True, slots=True)
class WorkerSummary:
    """One worker. `share_of_activations` is None without statistics."""

    name: str
    node: str
    tier: str
    is_home: bool
    num_experts: int
    held_bytes: int
    budget_bytes: int
    share_of_activations: float | None


@dataclass(frozen=True, slots=True)
class PlanSummary:
    """`remote_layers_per_token` says how many MoE layers of a token ask a box other than the head's.

    `basis` is what it was computed from: "trace" (measured), "counts" (experts independent), or None.
    """

    workers: tuple[WorkerSummary, ...]
    num_moe_layers: int
    replicas: int
    remote_layers_per_token: float | None
    basis: Literal["trace", "counts"] | None


def summarise(plan: Plan, stats: RoutingStats | None = None) -> PlanSummary:
    """Figures of `plan` for traffic like that of `stats`.

    Raises:
        RoutingFileError: statistics of another model.
    """
    held, held_bytes = plan.experts_per_tier().tolist(), plan.bytes_per_tier().tolist()
    is_home = plan.tiers_at_home()
    shares: list[float | None] = [None] * len(plan.tiers)
    remote_layers: float | None = None
    basis: Literal["trace", "counts"] | None = None
    if stats is not None:
        stats.check_fingerprint(plan.fingerprint, plan.model)
        basis = "counts" if stats.trace is None else "trace"
        if plan.holder_table.has_replicas:
            served, remote_layers = _as_dispatched(plan, stats, is_home)
        else:
            served = share_of_activations(plan.holder_table, stats, len(plan.tiers), plan.head_tier)
            remote_layers = remote_layers_per_step(plan.holder_table, stats, is_home)
        shares = list(served.tolist())
    rows = tuple(
        WorkerSummary(
            name=worker.name,
            node=worker.node,
            tier=worker.kind,
            is_home=bool(is_home[index]),
            num_experts=held[index],
            held_bytes=held_bytes[index],
            budget_bytes=worker.budget_bytes,
            share_of_activations=shares[index],
        )
        for index, worker in enumerate(plan.tiers)
    )
    replicas = int(np.sum(held)) - len(plan.moe_layers) * plan.num_experts
    return PlanSummary(rows, len(plan.moe_layers), replicas, remote_layers, basis)


def _as_dispatched(
    plan: Plan, stats: RoutingStats, is_home: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], float]:
    """Each worker's share of the choices, and remote layers a token, where the dispatcher may choose."""
    text = spread_steps(text_of(stats), 1, _MOST_STEPS)
    served = np.zeros(len(plan.tiers))
    remote_layers = 0
    for row, holders in enumerate(plan.holder_table.layers):
        chosen = assign_steps(text[:, None, row], holders, plan.replica_costs)
        served += np.bincount(chosen.ravel(), minlength=len(served))
        remote_layers += int((~is_home[chosen]).any(axis=(1, 2)).sum())
    return served / served.sum(), remote_layers / len(text)
