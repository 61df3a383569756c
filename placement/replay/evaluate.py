"""Expected time of a decode step under a placement, replayed on a trace: the cost model's closed form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from placement.assign.many_steps import assign_layers
from placement.cost.rates import expert_rates
from placement.cost.replica_costs import replica_costs
from placement.cost.sharing import layer_seconds
from placement.given.problem import PlanningProblem
from placement.holders import HolderTable
from placement.replay.single_token import SingleTokenTimes
from placement.replay.touches import count_touches, device_columns, steps_on

# Numbers held at once: [steps, layers, tokens, devices] of a chunk.
_CHUNK_ELEMENTS = 4_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """A policy on a trace; the head's own time (`cost.head_seconds`) comes on top.

    Attributes:
        moe_seconds: float64 [num_steps], all MoE layers of a step.
        remote_layers: int64 [num_steps], layers that asked another box.
        bound_share: float64 [num_devices], share of (step, layer) that the device was the last to answer.
        busy_seconds: float64 [num_devices], mean time a step that the device works or waits for the wire.
        head_s: what comes on top where it is not the head's own time, else None.
        hit_share: share of the distinct experts of a layer found in the fast memory, None where nobody asks.
    """

    moe_seconds: NDArray[np.float64]
    remote_layers: NDArray[np.int64]
    bound_share: NDArray[np.float64]
    busy_seconds: NDArray[np.float64]
    head_s: float | None = None
    hit_share: float | None = None

    @property
    def mean_s(self) -> float:
        return float(self.moe_seconds.mean())


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """Who computes what in one layer of successive steps.

    Attributes:
        devices: int16 [num_steps, num_tokens, top_k].
        not_before_s: float64 [num_steps, num_devices], seconds of the layer that each device takes at least:
            0 where nothing but its part of the work keeps it.
    """

    devices: NDArray[np.int16]
    not_before_s: NDArray[np.float64] | None = None


class Chooser(Protocol):
    """`expert_ids`: int [num_steps, num_tokens, top_k] of one layer, the steps from `first_step` on."""

    def __call__(self, row: int, first_step: int, expert_ids: NDArray[np.integer], /) -> Choice: ...


def evaluate(problem: PlanningProblem, table: HolderTable, trace: NDArray[np.integer]) -> Evaluation:
    """Replay `trace` through a placement.

    The dispatcher's own rule chooses among replicas (placement/assign/one_step.py).

    Args:
        trace: int [num_tokens, num_moe_layers, top_k], at least one step.
    """
    tokens = problem.workload.tokens_per_step
    num_steps = len(trace) // tokens
    steps = trace[: num_steps * tokens].reshape(num_steps, tokens, *trace.shape[1:])
    chosen = assign_layers(steps.transpose(2, 0, 1, 3), table.layers, replica_costs(problem))

    def choose(row: int, first_step: int, expert_ids: NDArray[np.integer]) -> Choice:
        return Choice(chosen[row, first_step : first_step + len(expert_ids)])

    return evaluate_choices(problem, choose, trace)


def evaluate_choices(problem: PlanningProblem, choose: Chooser, trace: NDArray[np.integer]) -> Evaluation:
    """Replay `trace`, successive tokens forming steps of `workload.tokens_per_step`; a rest is left out.

    Linear in tokens, bounded memory.

    Args:
        trace: int [num_tokens, num_moe_layers, top_k], at least one step.
    """
    rates, shape = expert_rates(problem), problem.shape
    tokens = problem.workload.tokens_per_step
    # For single tokens times are looked up, several times as fast.
    times = SingleTokenTimes.of(rates, shape.top_k) if tokens == 1 else None
    is_remote = np.array([not device.is_home for device in problem.devices])
    num_devices = len(problem.devices)
    seconds, remote = [], []
    bound = np.zeros(num_devices)
    busy = np.zeros(num_devices)
    first_step = 0
    for steps in _chunks(trace, tokens, num_devices):
        block_seconds = np.zeros(len(steps))
        block_remote = np.zeros(len(steps), dtype=np.int64)
        for row in range(shape.num_moe_layers):
            choice = choose(row, first_step, steps[:, row])
            if times is not None and choice.not_before_s is None:
                devices = device_columns(choice.devices[:, 0], num_devices)
                rank, cells = times.look_up(devices)
                block_seconds += times.seconds.take(rank)
                block_remote += steps_on(devices, is_remote)
                slowest = np.bincount(rank, minlength=len(times.seconds))
                bound += np.bincount(times.device, weights=slowest, minlength=num_devices)
                busy += (cells * times.cell_seconds())[:, 1:].sum(axis=1)
                continue
            touches = count_touches(choice.devices, steps[:, row], num_devices, shape.num_experts)
            per_device = layer_seconds(rates, touches.rows, touches.distinct, touches.pairs)
            asked = touches.rows > 0
            if choice.not_before_s is not None:
                per_device = np.maximum(per_device, choice.not_before_s)
                asked |= choice.not_before_s > 0
            block_seconds += per_device.max(axis=1)
            block_remote += asked[:, is_remote].any(axis=1)
            bound += np.bincount(per_device.argmax(axis=1), minlength=num_devices)
            busy += np.where(asked, per_device, 0.0).sum(axis=0)
        seconds.append(block_seconds)
        remote.append(block_remote)
        first_step += len(steps)
    return Evaluation(
        moe_seconds=np.concatenate(seconds),
        remote_layers=np.concatenate(remote),
        bound_share=bound / bound.sum(),
        busy_seconds=busy / first_step,
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
