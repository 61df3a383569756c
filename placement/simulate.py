"""Replays a trace through a plan on a cluster: how fast, what is busy, what bounds each layer.

One pass at a time meets nobody else's requests, so its time is the cost model's closed form, computed for
thousands of passes at once. docs/simulator.md says what is modelled.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from placement.assign import assign_steps
from placement.cost import ExpertRates, expert_seconds, messages_seconds
from placement.sharing import layer_seconds
from placement.simulation.queueing import simulate_queueing
from placement.simulation.scenario import Event, Patience, Stream
from placement.simulation.steps import Acceptance, StepBlock, Trace, step_blocks
from placement.simulation.system import System
from placement.simulation.tally import SimulationReport, Tally, num_messages
from placement.single_token import SingleTokenTimes
from placement.touches import Touches, count_pairs, count_touches


def simulate(
    system: System, streams: Sequence[Stream], events: Sequence[Event] = (), patience: Patience | None = None
) -> SimulationReport:
    """The closed form where nothing can meet or happen, else the queueing simulation, which takes longer.

    Raises:
        InputError, PlanError, RoutingFileError: as `simulate_alone` and `simulate_queueing`.
    """
    if len(streams) == 1 and not events and not system.shares_a_link:
        return simulate_alone(system, streams[0].traces, streams[0].acceptance)
    return simulate_queueing(system, streams, events, patience)


def simulate_alone(
    system: System, traces: Sequence[Trace], acceptance: Acceptance | None = None
) -> SimulationReport:
    """One pass after another, nothing else on the cluster: the closed form.

    Linear in tokens, bounded memory. Two devices behind one link are charged as if each had it alone;
    `placement.simulation.queueing` lets them wait for each other.

    Args:
        traces: one for all sequences of the workload, or one for each; see `step_blocks`.
        acceptance: of drafts; without it every token of a trace runs once.

    Raises:
        InputError: traces that do not go with the workload, or are too short for one pass.
        RoutingFileError: a trace of another model.
    """
    tally = Tally(system)
    duration_s = 0.0
    for block in step_blocks(system.shape, system.workload, traces, acceptance):
        seconds = add_block(tally, system.rates, block, system.head_s)
        tally.add_steps(seconds, block.new_tokens)
        duration_s += float(seconds.sum())
    tally.answered_rows[:] = tally.rows
    tally.device_s[system.head] += tally.num_steps * system.head_s
    return tally.report("closed form", duration_s)


def add_block(tally: Tally, rates: ExpertRates, block: StepBlock, head_s: float) -> NDArray[np.float64]:
    """Count passes and their devices' work; seconds of each, float64 [num_steps].

    Args:
        rates: of passes of this size on `tally.system`.
        head_s: the head's own time in each.
    """
    system = tally.system
    shape, table, costs = system.shape, system.plan.holder_table, system.plan.replica_costs
    elsewhere = np.arange(system.num_devices) != system.local
    is_remote = system.is_remote
    seconds = np.full(block.num_steps, head_s)
    single_tokens = block.expert_ids.shape[2] == 1
    times = SingleTokenTimes.of(rates, shape.top_k) if single_tokens else None
    if times is not None:
        for row, holders in enumerate(table.layers):
            chosen = assign_steps(block.expert_ids[:, row], holders, costs)
            seconds += _add_single_tokens(tally, rates, times, row, count_pairs(chosen, system.num_devices))
        tally.device_s += block.num_steps * shape.num_moe_layers * rates.busy_s
        return seconds
    for row, holders in enumerate(table.layers):
        expert_ids = block.expert_ids[:, row]
        chosen = assign_steps(expert_ids, holders, costs)
        touches = count_touches(chosen, expert_ids, system.num_devices, shape.num_experts)
        per_device = layer_seconds(rates, touches.rows, touches.distinct, touches.pairs)
        last = per_device.argmax(axis=1)
        seconds += np.take_along_axis(per_device, last[:, None], axis=1)[:, 0]
        asked = touches.rows > 0
        tally.rows += touches.rows.sum(axis=0, dtype=np.int64)
        tally.distinct += touches.distinct.sum(axis=0, dtype=np.int64)
        tally.pairs += touches.pairs.sum(axis=0, dtype=np.int64)
        tally.device_s += expert_seconds(rates, touches.distinct, touches.pairs).sum(axis=0)
        tally.device_s[system.head] += float(messages_seconds(rates, touches.rows).sum())
        tally.messages += num_messages(touches.rows[:, elsewhere])
        tally.asking_layers += int(asked[:, elsewhere].any(axis=1).sum())
        tally.remote_layers += int(asked[:, is_remote].any(axis=1).sum())
        tally.bound_device[row] += np.bincount(last, minlength=system.num_devices)
        causes = _causes(rates, touches, last)
        tally.bound_cause[row] += np.bincount(causes, minlength=tally.bound_cause.shape[1])
    tally.device_s += block.num_steps * shape.num_moe_layers * rates.busy_s
    return seconds


def _add_single_tokens(
    tally: Tally,
    rates: ExpertRates,
    times: SingleTokenTimes,
    row: int,
    pairs: NDArray[np.unsignedinteger],
) -> NDArray[np.float64]:
    """One layer of passes of one token, as `add_block` counts it, by table look-up; seconds of each pass."""
    system = tally.system
    num_devices, width = times.ranks.shape
    elsewhere = np.arange(num_devices) != system.local
    cells = times.cells(pairs)
    experts = np.repeat(np.arange(width)[:, None], num_devices, axis=1)
    asked, read = cells[:, 1:].sum(axis=1), (cells * np.arange(width)).sum(axis=1)
    tally.rows += asked
    tally.distinct += read
    tally.pairs += read
    tally.device_s += (cells * expert_seconds(rates, experts, experts).T).sum(axis=1)
    tally.messages += int(asked[elsewhere].sum())
    tally.asking_layers += int(np.count_nonzero(pairs[elsewhere].any(axis=0)))
    tally.remote_layers += int(np.count_nonzero(pairs[system.is_remote].any(axis=0)))
    rank = times.slowest(pairs)
    slowest = np.bincount(rank, minlength=len(times.seconds))
    np.add.at(tally.bound_device[row], times.device, slowest)
    of_cell = np.zeros((len(times.seconds), num_devices), dtype=np.uint64)
    of_cell[np.arange(len(of_cell)), times.device] = times.experts
    causes = _causes(rates, Touches(np.minimum(of_cell, 1), of_cell, of_cell), times.device)
    np.add.at(tally.bound_cause[row], causes, slowest)
    return times.seconds.take(rank)


def _causes(rates: ExpertRates, touches: Touches, last: NDArray[np.intp]) -> NDArray[np.intp]:
    """The largest part of the slowest device's time, an index into CAUSES, for each step."""
    steps = np.arange(len(last))
    rows = touches.rows[steps, last]
    parts = (
        touches.distinct[steps, last] * rates.read_s[last],
        touches.pairs[steps, last] * rates.compute_s[last]
        + touches.distinct[steps, last] * rates.expert_s[last],
        (rows > 0) * rates.round_trip_s[last],
        rows * rates.row_wire_s[last],
        rates.busy_s[last],
        np.zeros(len(last)),
        (rows > 0) * rates.request_s[last] + messages_seconds(rates, touches.rows),
    )
    causes: NDArray[np.intp] = np.argmax(parts, axis=0)
    return causes
