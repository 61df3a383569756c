"""Expected time of a decode step under a placement, replayed on a trace: the cost model's closed form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placement.assign import assign_steps
from placement.cost import expert_rates
from placement.holders import HolderTable
from placement.problem import PlanningProblem
from placement.replica_costs import replica_costs
from placement.sharing import layer_seconds
from placement.touches import count_touches

# Numbers held at once: [steps, layers, tokens, devices] of a chunk.
_CHUNK_ELEMENTS = 4_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """A placement on a trace; the head's own time (`cost.head_seconds`) comes on top.

    Attributes:
        moe_seconds: float64 [num_steps], all MoE layers of a step.
        remote_layers: float64 [num_steps], layers that asked another box.
        bound_share: float64 [num_devices], share of (step, layer) that the device was the last to answer.
        busy_seconds: float64 [num_devices], mean time a step that the device works or waits for the wire.
    """

    moe_seconds: NDArray[np.float64]
    remote_layers: NDArray[np.int64]
    bound_share: NDArray[np.float64]
    busy_seconds: NDArray[np.float64]

    @property
    def mean_s(self) -> float:
        return float(self.moe_seconds.mean())


def evaluate(problem: PlanningProblem, table: HolderTable, trace: NDArray[np.integer]) -> Evaluation:
    """Replay `trace`, successive tokens forming steps of `workload.tokens_per_step`; a rest is left out.

    Linear in tokens, bounded memory. The dispatcher's own rule chooses among replicas
    (placement/assign.py).

    Args:
        trace: int [num_tokens, num_moe_layers, top_k], at least one step.
    """
    rates, costs = expert_rates(problem), replica_costs(problem)
    is_home = np.array([device.is_home for device in problem.devices])
    num_devices = len(problem.devices)
    seconds, remote = [], []
    bound = np.zeros(num_devices)
    busy = np.zeros(num_devices)
    for steps in _chunks(trace, problem.workload.tokens_per_step, num_devices):
        block_seconds = np.zeros(len(steps))
        block_remote = np.zeros(len(steps), dtype=np.int64)
        for row, holders in enumerate(table.layers):
            chosen = assign_steps(steps[:, row], holders, costs)
            touches = count_touches(chosen, steps[:, row], num_devices, table.num_experts)
            per_device = layer_seconds(rates, touches.rows, touches.distinct, touches.pairs)
            asked = touches.rows > 0
            block_seconds += per_device.max(axis=1)
            block_remote += asked[:, ~is_home].any(axis=1)
            bound += np.bincount(per_device.argmax(axis=1), minlength=num_devices)
            busy += np.where(asked, per_device, 0.0).sum(axis=0)
        seconds.append(block_seconds)
        remote.append(block_remote)
    num_steps = sum(len(part) for part in seconds)
    return Evaluation(
        moe_seconds=np.concatenate(seconds),
        remote_layers=np.concatenate(remote),
        bound_share=bound / bound.sum(),
        busy_seconds=busy / num_steps,
    )


def _chunks(
    trace: NDArray[np.integer], tokens_per_step: int, num_devices: int
) -> Iterator[NDArray[np.integer]]:
    """Views [steps, layers, tokens_per_step, top_k] of bounded size."""
    num_steps = len(trace) // tokens_per_step
    _, num_layers, top_k = trace.shape
    steps = trace[: num_steps * tokens_per_step].reshape(num_steps, tokens_per_step, num_layers, top_k)
    steps = steps.transpose(0, 2, 1, 3)
    size = max(1, _CHUNK_ELEMENTS // (num_layers * tokens_per_step * max(num_devices, top_k)))
    for start in range(0, num_steps, size):
        yield steps[start : start + size]
