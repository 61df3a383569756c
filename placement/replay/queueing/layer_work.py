"""The requests of successive passes, computed for many at once and read one layer at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from placement.assign.many_steps import assign_steps
from placement.assign.one_step import ReplicaCosts
from placement.cost.roofline import messages_seconds, work_alone_seconds
from placement.cost.sharing import cpu_seconds, shares, work_seconds
from placement.holders import HolderTable
from placement.replay.system import System
from placement.replay.touches import Touches, count_touches


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
        meanwhile_s: for each cell how long the head computes while others do: shared and own experts.
        messages_s: for each cell the head's software for its requests.
        missing: cell -> an expert it needs that nobody holds.
    """

    chosen: list[NDArray[np.int16]]
    asked: list[list[Work]]
    local: list[Work | None]
    meanwhile_s: list[float]
    messages_s: list[float]
    missing: dict[int, int]


def layer_work(
    system: System, table: HolderTable, costs: ReplicaCosts, expert_ids: NDArray[np.integer]
) -> LayerWork:
    """Assign and count passes, `expert_ids`: int [num_steps, num_moe_layers, num_tokens, top_k]."""
    num_steps, num_layers = expert_ids.shape[:2]
    cells = num_steps * num_layers
    work = LayerWork([], [[] for _ in range(cells)], [None] * cells, [0.0] * cells, [0.0] * cells, {})
    for row, holders in enumerate(table.layers):
        ids = expert_ids[:, row]
        chosen = assign_steps(ids, holders, costs)
        work.chosen.append(chosen)
        for step in np.flatnonzero((chosen < 0).any(axis=(1, 2))).tolist():
            work.missing[step * num_layers + row] = int(ids[step][chosen[step] < 0][0])
        found = works(system, chosen, ids)
        work.meanwhile_s[row::num_layers] = found.meanwhile_s
        work.messages_s[row::num_layers] = found.messages_s
        for step, part in zip(found.steps, found.parts, strict=True):
            cell = step * num_layers + row
            if part.device == system.local:
                work.local[cell] = part
            else:
                work.asked[cell].append(part)
    return work


class Works(NamedTuple):
    """Touched devices' parts of one layer in successive steps.

    Attributes:
        steps, parts: of each part its step, ascending, and itself.
        meanwhile_s, messages_s: of each step, as in `LayerWork`.
    """

    steps: list[int]
    parts: list[Work]
    meanwhile_s: list[float]
    messages_s: list[float]


def works(system: System, chosen: NDArray[np.int16], expert_ids: NDArray[np.integer]) -> Works:
    """Every touched device's part of one layer. Devices of one machine slow each other within a step.

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
    rates, head = system.rates, system.head
    rows, distinct, pairs = (
        count[steps, devices] for count in (touches.rows, touches.distinct, touches.pairs)
    )
    if shares(rates):
        whole = work_seconds(rates, touches.distinct, touches.pairs)
        all_seconds = np.maximum(whole - rates.busy_s, 0.0)
        meanwhile_s = whole[:, head]
    else:
        all_seconds = work_alone_seconds(rates, touches.distinct, touches.pairs)
        meanwhile_s = rates.busy_s[head] + all_seconds[:, head]
    arithmetic_s = cpu_seconds(rates, touches.distinct, touches.pairs)[steps, devices]
    reads = distinct * rates.read_s[devices] >= arithmetic_s
    columns = (
        field.tolist() for field in (devices, rows, distinct, pairs, all_seconds[steps, devices], reads)
    )
    messages_s = messages_seconds(rates, touches.rows)
    return Works(steps.tolist(), list(map(Work, *columns)), meanwhile_s.tolist(), messages_s.tolist())
