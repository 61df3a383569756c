"""Expected time of a decode step under a placement, replayed on a trace: the cost model's closed form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placement.assign import assign_experts
from placement.cost import ExpertRates, device_seconds, expert_rates
from placement.holders import HolderTable
from placement.plan import LOCAL_WORKER
from placement.problem import PlanningProblem

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

    Linear in tokens, bounded memory. With replicas the dispatcher's own `assign_experts` chooses, step by
    step; without, one table look-up does.

    Args:
        trace: int [num_tokens, num_moe_layers, top_k], at least one step.
    """
    rates = expert_rates(problem)
    is_home = np.array([device.is_home for device in problem.devices])
    num_devices = len(problem.devices)
    seconds, remote = [], []
    bound = np.zeros(num_devices)
    busy = np.zeros(num_devices)
    for steps in _chunks(trace, problem.workload.tokens_per_step, num_devices):
        per_device, asked = _device_seconds(rates, _chosen_devices(table, steps, problem), steps, num_devices)
        seconds.append(per_device.max(axis=2).sum(axis=1))
        remote.append((asked & ~is_home).any(axis=2).sum(axis=1))
        bound += np.bincount(per_device.argmax(axis=2).ravel(), minlength=num_devices)
        busy += np.where(asked, per_device, 0.0).sum(axis=(0, 1))
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


def _chosen_devices(
    table: HolderTable, steps: NDArray[np.integer], problem: PlanningProblem
) -> NDArray[np.int16]:
    """The device of every chosen expert, of the shape of `steps` [steps, layers, tokens, top_k]."""
    if not table.has_replicas:
        return np.stack([layer.single.take(steps[:, row]) for row, layer in enumerate(table.layers)], axis=1)
    local = next((i for i, device in enumerate(problem.devices) if device.worker.name == LOCAL_WORKER), None)
    chosen = np.empty(steps.shape, dtype=np.int16)
    for step, row in np.ndindex(*steps.shape[:2]):
        chosen[step, row] = assign_experts(steps[step, row], table.layers[row], local)
    return chosen


def _device_seconds(
    rates: ExpertRates, chosen: NDArray[np.int16], steps: NDArray[np.integer], num_devices: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Seconds and whether asked, [steps, layers, devices] each."""
    num_steps, num_layers, num_tokens, top_k = chosen.shape
    cells = num_steps * num_layers
    row_index = np.arange(cells * num_tokens).repeat(top_k) * num_devices
    pairs_by_row = np.bincount(row_index + chosen.ravel(), minlength=cells * num_tokens * num_devices)
    by_row = pairs_by_row.reshape(num_steps, num_layers, num_tokens, num_devices)
    pairs = by_row.sum(axis=2)
    if num_tokens == 1:
        return device_seconds(rates, pairs > 0, pairs, pairs), pairs > 0
    rows = (by_row > 0).sum(axis=2)
    distinct = _count_distinct(chosen, steps, num_devices)
    return device_seconds(rates, rows, distinct, pairs), pairs > 0


def _count_distinct(
    chosen: NDArray[np.int16], steps: NDArray[np.integer], num_devices: int
) -> NDArray[np.int64]:
    """Distinct experts of all tokens of a step on each device: int64 [steps, layers, devices]."""
    num_steps, num_layers, num_tokens, top_k = steps.shape
    # An expert has one device in a step, so sorting (expert, device) together brings repeats side by side.
    keys = steps.astype(np.int64) * num_devices + chosen
    keys = np.sort(keys.reshape(num_steps, num_layers, num_tokens * top_k), axis=2)
    first = np.ones(keys.shape, dtype=np.bool_)
    first[:, :, 1:] = keys[:, :, 1:] != keys[:, :, :-1]
    cell = np.arange(num_steps * num_layers).reshape(num_steps, num_layers, 1) * num_devices
    index = (cell + keys % num_devices)[first]
    counts = np.bincount(index, minlength=num_steps * num_layers * num_devices)
    return counts.reshape(num_steps, num_layers, num_devices)
