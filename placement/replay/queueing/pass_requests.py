"""The requests of successive passes, computed for many at once and read one layer at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from placement.assign.many_steps import assign_steps
from placement.assign.one_step import ReplicaCosts
from placement.cost.roofline import messages_seconds, work_alone_seconds
from placement.cost.sharing import cpu_seconds, shares, work_seconds
from placement.holders import HolderTable
from placement.replay.demand import count_demand
from placement.replay.system import System


class BoxRequest(NamedTuple):
    """What one layer of one pass asks of a box: the part of one of its devices, and those of `others`.

    Most boxes have one device, and reading a request takes most of a simulation's time: so it is flat.

    Attributes:
        box: the first of the box's devices (`ExpertRates.box`).
        rows: of the request.
        device, distinct, pairs, seconds: the part of the first device that has one.
        reads: memory bounds that part, not arithmetic.
        others: the parts of the box's other devices, each without others.
    """

    box: int
    rows: int
    device: int
    distinct: int
    pairs: int
    seconds: float
    reads: bool
    others: tuple[BoxRequest, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class PassRequests:
    """What passes need, by cell: step * num_moe_layers + row.

    Attributes:
        chosen: for each row int16 [num_steps, num_tokens, top_k], the device of every choice.
        asked: for each cell the requests to all devices but the head's own, by box.
        local: for each cell what the head's own device has to do.
        meanwhile_s: for each cell how long the head computes while others do: shared and own experts.
        messages_s: for each cell the head's software for its requests.
        missing: cell -> an expert it needs that nobody holds.
    """

    chosen: list[NDArray[np.int16]]
    asked: list[list[BoxRequest]]
    local: list[BoxRequest | None]
    meanwhile_s: list[float]
    messages_s: list[float]
    missing: dict[int, int]


def pass_requests(
    system: System, table: HolderTable, costs: ReplicaCosts, expert_ids: NDArray[np.integer]
) -> PassRequests:
    """Assign and count passes, `expert_ids`: int [num_steps, num_moe_layers, num_tokens, top_k]."""
    num_steps, num_layers = expert_ids.shape[:2]
    cells = num_steps * num_layers
    found = PassRequests([], [[] for _ in range(cells)], [None] * cells, [0.0] * cells, [0.0] * cells, {})
    for row, holders in enumerate(table.layers):
        ids = expert_ids[:, row]
        chosen = assign_steps(ids, holders, costs)
        found.chosen.append(chosen)
        for step in np.flatnonzero((chosen < 0).any(axis=(1, 2))).tolist():
            found.missing[step * num_layers + row] = int(ids[step][chosen[step] < 0][0])
        layer = layer_requests(system, chosen, ids)
        found.meanwhile_s[row::num_layers] = layer.meanwhile_s
        found.messages_s[row::num_layers] = layer.messages_s
        for step, request in zip(layer.steps, layer.requests, strict=True):
            cell = step * num_layers + row
            if request.box == system.local:
                found.local[cell] = request
            else:
                found.asked[cell].append(request)
    return found


class LayerRequests(NamedTuple):
    """One layer of successive steps.

    Attributes:
        steps, requests: of each request its step, ascending, and itself; the head's own device is asked too.
        meanwhile_s, messages_s: of each step, as in `PassRequests`.
    """

    steps: Sequence[int]
    requests: Sequence[BoxRequest]
    meanwhile_s: list[float]
    messages_s: list[float]


def layer_requests(
    system: System, chosen: NDArray[np.int16], expert_ids: NDArray[np.integer]
) -> LayerRequests:
    """What each box has to do in one layer. Devices of one machine slow each other within a step.

    Args:
        chosen: int16 [num_steps, num_tokens, top_k], below 0 where there is nothing to do.
        expert_ids: int, the same shape.
    """
    rates, head = system.rates, system.head
    demand = count_demand(
        np.where(chosen < 0, np.int16(system.num_devices), chosen),
        expert_ids,
        system.num_devices,
        system.shape.num_experts,
        rates.shared_box,
    )
    steps, devices = np.nonzero(demand.rows)
    if rates.shared_box is not None:
        order = np.lexsort((devices, rates.box[devices], steps))
        steps, devices = steps[order], devices[order]
    rows, distinct, pairs = (
        count[steps, devices] for count in (demand.message_rows, demand.distinct, demand.pairs)
    )
    if shares(rates):
        whole = work_seconds(rates, demand.distinct, demand.pairs)
        all_seconds = np.maximum(whole - rates.busy_s, 0.0)
        meanwhile_s = whole[:, head]
    else:
        all_seconds = work_alone_seconds(rates, demand.distinct, demand.pairs)
        meanwhile_s = rates.busy_s[head] + all_seconds[:, head]
    arithmetic_s = cpu_seconds(rates, demand.distinct, demand.pairs)[steps, devices]
    reads = distinct * rates.read_s[devices] >= arithmetic_s
    boxes, seconds = rates.box[devices], all_seconds[steps, devices]
    columns = (field.tolist() for field in (boxes, rows, devices, distinct, pairs, seconds, reads))
    found = list(map(BoxRequest, *columns))
    messages_s = messages_seconds(rates, demand.message_rows).tolist()
    if rates.shared_box is not None:
        first = np.flatnonzero((np.diff(steps, prepend=-1) != 0) | (np.diff(boxes, prepend=-1) != 0))
        found = list(_by_box(found, first.tolist()))
        steps = steps[first]
    return LayerRequests(steps.tolist(), found, meanwhile_s.tolist(), messages_s)


def _by_box(requests: list[BoxRequest], first: list[int]) -> Iterator[BoxRequest]:
    """One request for those from each of `first` to the next, which are to one box."""
    for start, end in zip(first, [*first[1:], len(requests)], strict=True):
        yield requests[start]._replace(others=tuple(requests[start + 1 : end]))
