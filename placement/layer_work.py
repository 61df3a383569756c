"""The requests of successive passes, computed for many at once and read one layer at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from placement.assign import ReplicaCosts, assign_steps
from placement.cost import expert_seconds
from placement.holders import HolderTable
from placement.system import System
from placement.touches import Touches, count_touches


class Work(NamedTuple):
    """One device's part of one layer. `reads`: memory bounds it, not arithmetic."""

    device: int
    rows: int
    distinct: int
    pairs: int
    seconds: float
    reads: bool


@dataclass(frozen=True, slots=True, eq=False)
class LayerWork:
    """What passes need, by cell: step * num_moe_layers + row.

    Attributes:
        chosen: for each row int16 [num_steps, num_tokens, top_k], the device of every choice.
        asked: for each cell the work of devices outside the head's process, ascending.
        local: for each cell that of the head's own device.
        missing: cell -> an expert it needs that nobody holds.
    """

    chosen: list[NDArray[np.int16]]
    asked: list[list[Work]]
    local: list[Work | None]
    missing: dict[int, int]


def layer_work(
    system: System, table: HolderTable, costs: ReplicaCosts, expert_ids: NDArray[np.integer]
) -> LayerWork:
    """Assign and count passes, `expert_ids`: int [num_steps, num_moe_layers, num_tokens, top_k]."""
    num_steps, num_layers = expert_ids.shape[:2]
    work = LayerWork([], [[] for _ in range(num_steps * num_layers)], [None] * (num_steps * num_layers), {})
    for row, holders in enumerate(table.layers):
        ids = expert_ids[:, row]
        chosen = assign_steps(ids, holders, costs)
        work.chosen.append(chosen)
        for step in np.flatnonzero((chosen < 0).any(axis=(1, 2))).tolist():
            work.missing[step * num_layers + row] = int(ids[step][chosen[step] < 0][0])
        for step, part in zip(*works(system, chosen, ids), strict=True):
            cell = step * num_layers + row
            if part.device == system.local:
                work.local[cell] = part
            else:
                work.asked[cell].append(part)
    return work


def works(
    system: System, chosen: NDArray[np.int16], expert_ids: NDArray[np.integer]
) -> tuple[list[int], list[Work]]:
    """Every touched device's part of one layer: the steps, ascending, and the parts.

    Args:
        chosen: int16 [num_steps, num_tokens, top_k], below 0 where there is nothing to do.
        expert_ids: int, the same shape.
    """
    touches: Touches = count_touches(
        np.where(chosen < 0, np.int16(system.num_devices), chosen),
        expert_ids,
        system.num_devices,
        system.shape.num_experts,
    )
    steps, devices = np.nonzero(touches.rows)
    rates = system.rates
    rows, distinct, pairs = (
        count[steps, devices] for count in (touches.rows, touches.distinct, touches.pairs)
    )
    seconds = expert_seconds(rates, touches.distinct, touches.pairs)[steps, devices]
    reads = distinct * rates.read_s[devices] >= pairs * rates.compute_s[devices]
    columns = (field.tolist() for field in (devices, rows, distinct, pairs, seconds, reads))
    return steps.tolist(), list(map(Work, *columns))
