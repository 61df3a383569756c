"""What the planner minimises: expected seconds of a decode step and of the prefill that falls to it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from placement.evaluate import evaluate
from placement.holders import NO_WORKER, HolderTable
from placement.prefill import prefill_seconds
from placement.problem import PlanningProblem


def objective_s(problem: PlanningProblem, table: HolderTable, trace: NDArray[np.integer]) -> float:
    """Mean MoE seconds of a decode step on `trace`, and the prefill that falls to it, the head's included.

    Args:
        trace: int [num_tokens, num_moe_layers, top_k], at least one step.
    """
    decode_s = evaluate(problem, table, trace).mean_s
    passes = problem.workload.prefill_passes_per_step
    return decode_s + passes * prefill_pass_s(problem, table) if passes else decode_s


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
