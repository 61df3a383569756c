"""What the planner minimises: expected seconds of a decode step and of the prefill that falls to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placement.cost.prefill import prefill_seconds
from placement.given.problem import PlanningProblem
from placement.holders import NO_WORKER, HolderTable
from placement.replay.evaluate import evaluate


@dataclass(frozen=True, slots=True)
class Speed:
    """A placement on a text, the mean of its steps.

    Attributes:
        decode_s: MoE seconds of a decode step.
        prompt_s: of the prefill that falls to it, the head's included; 0 where none does.
        remote_layers: layers of a step that ask another box.
    """

    decode_s: float
    prompt_s: float
    remote_layers: float

    @property
    def total_s(self) -> float:
        return self.decode_s + self.prompt_s


def speed(problem: PlanningProblem, table: HolderTable, trace: NDArray[np.integer]) -> Speed:
    """`trace`: int [num_tokens, num_moe_layers, top_k], at least one step."""
    evaluation = evaluate(problem, table, trace)
    passes = problem.workload.prefill_passes_per_step
    prompt_s = passes * prefill_pass_s(problem, table) if passes else 0.0
    return Speed(evaluation.mean_s, prompt_s, float(evaluation.remote_layers.mean()))


def objective_s(problem: PlanningProblem, table: HolderTable, trace: NDArray[np.integer]) -> float:
    """What the planner minimises on `trace`."""
    return speed(problem, table, trace).total_s


def prefill_pass_s(problem: PlanningProblem, table: HolderTable) -> float:
    """Seconds of one prefill pass of `workload.prefill_tokens`; without statistics for even routing.

    Where the head has no device, and nobody knows how fast it is, of the experts alone.
    """
    share, held = prefill_load(problem, table)
    return prefill_seconds(problem, share, held, problem.workload.prefill_tokens)


def prefill_load(
    problem: PlanningProblem, table: HolderTable
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Each device's share of every layer's choices, [num_moe_layers, num_devices], and the experts it holds.

    Holders of the same expert share its load evenly: with hundreds of tokens each of them is asked anyway.
    """
    num_layers, num_experts, _ = table.table.shape
    num_devices = len(problem.devices)
    counts = np.ones((num_layers, num_experts)) if problem.stats is None else problem.stats.counts
    weights = counts / counts.sum(axis=1, keepdims=True)
    layer, expert, place = np.nonzero(table.table != NO_WORKER)
    cells = layer * num_devices + table.table[layer, expert, place]
    holders = (table.table != NO_WORKER).sum(axis=2)
    load = np.bincount(
        cells, weights=(weights / np.maximum(holders, 1))[layer, expert], minlength=num_layers * num_devices
    )
    held = np.bincount(cells, minlength=num_layers * num_devices).astype(np.int64)
    return load.astype(np.float64).reshape(num_layers, -1), held.reshape(num_layers, -1)
