"""Expected time of a decode step under a placement: a trace replayed in closed form, step by step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placement.cost.rates import expert_rates
from placement.cost.replica_costs import replica_costs
from placement.given.problem import PlanningProblem
from placement.holders import HolderTable
from placement.replay.closed_form import (
    Arrivals,
    Chooser,
    CountedSteps,
    LookedUpTokens,
    choose_holders,
    replay_block,
)
from placement.replay.demand import steps_on
from placement.replay.steps import step_blocks


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """A policy on a trace; the head's own time (`cost.head.head_seconds`) comes on top.

    Attributes:
        moe_seconds: float64 [num_steps], all MoE layers of a step.
        remote_layers: int64 [num_steps], layers that asked another box.
        bound_share: float64 [num_devices], share of (step, layer) that the device was the last to answer.
        head_s: what comes on top where it is not the head's own time, else None.
        hit_share: share of the distinct experts of a layer found in the fast memory, None where nobody asks.
    """

    moe_seconds: NDArray[np.float64]
    remote_layers: NDArray[np.int64]
    bound_share: NDArray[np.float64]
    head_s: float | None = None
    hit_share: float | None = None

    @property
    def mean_s(self) -> float:
        return float(self.moe_seconds.mean())


def evaluate(problem: PlanningProblem, table: HolderTable, trace: NDArray[np.integer]) -> Evaluation:
    """Replay `trace` through a placement.

    The dispatcher's own rule chooses among replicas (placement/assign/one_step.py).

    Args:
        trace: int [num_tokens, num_moe_layers, top_k], at least one step.
    """
    return evaluate_choices(problem, choose_holders(table, replica_costs(problem)), trace)


def evaluate_choices(
    problem: PlanningProblem,
    choose: Chooser,
    trace: NDArray[np.integer],
    arrivals: Arrivals | None = None,
) -> Evaluation:
    """Replay `trace`, successive tokens forming steps of `workload.tokens_per_step`; a rest is left out.

    Linear in tokens, bounded memory.

    Args:
        trace: int [num_tokens, num_moe_layers, top_k], at least one step.
        arrivals: what else than their work keeps devices.
    """
    rates, shape = expert_rates(problem), problem.shape
    is_remote = np.array([not device.is_home for device in problem.devices])
    seconds, remote = [], []
    bound = np.zeros(len(problem.devices))
    first_step = 0
    for block in step_blocks(shape, problem.workload, [trace]):
        record = _StepRecord(is_remote, bound, np.zeros(block.num_steps, dtype=np.int64))
        seconds.append(
            replay_block(
                rates, shape.num_experts, block, choose, record, first_step=first_step, arrivals=arrivals
            )
        )
        remote.append(record.remote_layers)
        first_step += block.num_steps
    return Evaluation(
        moe_seconds=np.concatenate(seconds),
        remote_layers=np.concatenate(remote),
        bound_share=bound / bound.sum(),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _StepRecord:
    """Of one block: who was last, added to `bound` [num_devices], and each step's `remote_layers`."""

    is_remote: NDArray[np.bool_]
    bound: NDArray[np.float64]
    remote_layers: NDArray[np.int64]

    def add_tokens(self, _row: int, found: LookedUpTokens) -> None:
        self.remote_layers[:] += steps_on(found.devices, self.is_remote)
        slowest = np.bincount(found.rank, minlength=len(found.times.seconds))
        self.bound[:] += np.bincount(found.times.device, weights=slowest, minlength=len(self.bound))

    def add_work(self, _device: int, _work_s: NDArray[np.float64]) -> None:
        """Nobody asks."""

    def add_steps(self, _layers: slice, found: CountedSteps) -> None:
        asked = found.demand.rows.T > 0
        if found.delayed is not None:
            asked |= found.delayed.T
        away = asked[self.is_remote].any(axis=0).reshape(-1, len(self.remote_layers))
        self.remote_layers[:] += np.count_nonzero(away, axis=0)
        self.bound[:] += np.bincount(found.slowest, minlength=len(self.bound))
