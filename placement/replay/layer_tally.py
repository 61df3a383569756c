"""What a simulation counts of each layer: what devices did, what was sent, what the layer waited for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placement.cost.roofline import ExpertRates, arithmetic_seconds, work_alone_seconds
from placement.cost.sharing import cpu_seconds, disks_computed_beside
from placement.replay.closed_form import CountedSteps, LookedUpTokens
from placement.replay.demand import Demand, steps_on
from placement.replay.layer_times import first_largest
from placement.replay.single_token import SingleTokenTimes
from placement.replay.tally import Tally, num_messages


@dataclass(frozen=True, slots=True, eq=False)
class _TokenCells:
    """Of the cells of `SingleTokenTimes`.

    Attributes:
        cause: [num_cells], by rank.
        work_s: float64 [num_devices, top_k + 1].
    """

    cause: NDArray[np.unsignedinteger]
    work_s: NDArray[np.float64]


class LayerTally:
    """A closed form's `Recorder` that adds to `tally`; `rates` are those of the passes."""

    def __init__(self, tally: Tally, rates: ExpertRates) -> None:
        self._tally = tally
        self._rates = rates
        system = tally.system
        self._is_asked, self._is_remote = system.is_asked, system.is_remote
        # Workers on the head's node outside the head's process.
        self._others_at_home = not np.array_equal(self._is_asked, self._is_remote)
        self._first_of_box, self._shared_boxes = rates.first_of_box, system.shared_boxes
        self._work_s: list[NDArray[np.float64]] = []
        self._cells: _TokenCells | None = None

    def add_tokens(self, row: int, found: LookedUpTokens) -> None:
        tally, times = self._tally, found.times
        if self._cells is None:
            self._cells = self._token_cells(times)
        cells = found.cells
        asked, read = cells[:, 1:].sum(axis=1), (cells * np.arange(cells.shape[1])).sum(axis=1)
        tally.distinct += read
        tally.pairs += read
        tally.device_s += (cells * self._cells.work_s).sum(axis=1)
        message_rows = asked
        for first, box in self._shared_boxes:
            message_rows[box] = 0
            message_rows[first] = np.count_nonzero(steps_on(found.devices, box))
        tally.message_rows += message_rows
        tally.messages += int(message_rows[self._is_asked].sum())
        asking = int(np.count_nonzero(steps_on(found.devices, self._is_asked)))
        tally.asking_layers += asking
        if not self._others_at_home:
            tally.remote_layers += asking
        else:
            tally.remote_layers += int(np.count_nonzero(steps_on(found.devices, self._is_remote)))
        slowest = np.bincount(found.rank, minlength=len(times.seconds))
        np.add.at(tally.bound_device[row], times.device, slowest)
        np.add.at(tally.bound_cause[row], self._cells.cause, slowest)

    def add_work(self, _device: int, work_s: NDArray[np.float64]) -> None:
        # Summed at once, while it is in the processor's cache, and layer by layer, so that sums do not depend
        # on how many layers go together.
        self._work_s.append(work_s.sum(axis=1))

    def add_steps(self, layers: slice, found: CountedSteps) -> None:
        tally, system = self._tally, self._tally.system
        num_layers = layers.stop - layers.start
        work_s = np.stack(self._work_s, axis=1)
        self._work_s.clear()
        for layer_s, messages_s in zip(work_s, found.messages_s.reshape(num_layers, -1), strict=True):
            tally.device_s += layer_s
            tally.device_s[system.head] += messages_s.sum()
        self._count(found.demand)
        causes = _causes(self._rates, found.demand, found.slowest, found.messages_s, self._is_remote)
        num_steps = len(causes) // num_layers
        for layer, row in enumerate(range(layers.start, layers.stop)):
            steps = slice(layer * num_steps, (layer + 1) * num_steps)
            tally.bound_device[row] += np.bincount(found.slowest[steps], minlength=system.num_devices)
            tally.bound_cause[row] += np.bincount(causes[steps], minlength=tally.bound_cause.shape[1])

    def _count(self, demand: Demand) -> None:
        tally = self._tally
        # Sums of a block of small counts fit 32 bits, which numpy adds faster.
        tally.distinct += demand.distinct.sum(axis=0, dtype=np.uint32)
        tally.pairs += demand.pairs.sum(axis=0, dtype=np.uint32)
        first = self._first_of_box
        tally.message_rows += first * demand.message_rows.sum(axis=0, dtype=np.uint32)
        sent = demand.message_rows.T[first & self._is_asked]
        tally.messages += num_messages(sent)
        asking = int(np.count_nonzero(sent.any(axis=0)))
        tally.asking_layers += asking
        if not self._others_at_home:
            tally.remote_layers += asking
        else:
            tally.remote_layers += int(np.count_nonzero(demand.rows.T[self._is_remote].any(axis=0)))

    def _token_cells(self, times: SingleTokenTimes) -> _TokenCells:
        rates = self._rates
        num_devices, width = times.ranks.shape
        experts = np.repeat(np.arange(width)[:, None], num_devices, axis=1)
        of_cell = np.zeros((len(times.seconds), num_devices), dtype=np.uint64)
        of_cell[np.arange(len(of_cell)), times.device] = times.experts
        one_row = np.minimum(of_cell, 1)
        demand = Demand(one_row, of_cell, of_cell, one_row)
        no_messages_s = np.zeros(len(of_cell))
        return _TokenCells(
            cause=_causes(rates, demand, times.device, no_messages_s, self._is_remote),
            work_s=work_alone_seconds(rates, experts, experts).T,
        )


def _causes(
    rates: ExpertRates,
    demand: Demand,
    last: NDArray[np.integer],
    messages_s: NDArray[np.float64],
    is_remote: NDArray[np.bool_],
) -> NDArray[np.unsignedinteger]:
    """The largest part of the slowest device's time, an index into CAUSES, for each step.

    Args:
        last: [num_steps], the slowest device.
        messages_s: [num_steps], the head's software for all requests.
        is_remote: [num_devices], on another box than the head.
    """
    last = last.astype(np.intp)
    cell = last * len(last) + np.arange(len(last))
    rows, distinct, pairs = (
        counts.T.take(cell).astype(np.float64)
        for counts in (demand.message_rows, demand.distinct, demand.pairs)
    )
    if len(disks_computed_beside(rates)):
        computing = cpu_seconds(rates, demand.distinct, demand.pairs)[np.arange(len(last)), last]
    else:
        computing = arithmetic_seconds(rates, distinct, pairs, last)
    round_trip_s, wire_s = (rows > 0) * rates.round_trip_s.take(last), rows * rates.row_wire_s.take(last)
    away = is_remote.take(last)
    parts = (
        distinct * rates.read_s.take(last),
        computing,
        away * round_trip_s,
        away * wire_s,
        rates.busy_s.take(last),
        np.zeros(len(last)),
        (pairs > 0) * rates.request_s.take(last) + messages_s,
        ~away * (round_trip_s + wire_s),
    )
    return first_largest(parts)[1]
