"""Replays a trace through a plan on a cluster: how fast, what is busy, what bounds each layer.

One pass at a time meets nobody else's requests, so its time is the cost model's closed form, computed for
thousands of passes at once. docs/simulator.md says what is modelled.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from placement.assign.many_steps import assign_columns
from placement.cost.roofline import ExpertRates
from placement.patience import Patience
from placement.replay.layer_tally import tally_single_tokens, tally_steps
from placement.replay.layer_times import LayerTimes
from placement.replay.queueing.scenario import Event, Stream
from placement.replay.queueing.simulation import simulate_queueing
from placement.replay.single_token import SingleTokenTimes
from placement.replay.steps import Acceptance, StepBlock, Trace, step_blocks
from placement.replay.system import System
from placement.replay.tally import SimulationReport, Tally

# Layers are counted together while what they need fits the processor's second-level cache.
_CHOICES_AT_ONCE = 1 << 19


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
    `placement.replay.queueing.simulation` lets them wait for each other.

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
    table, costs = system.plan.holder_table, system.plan.replica_costs
    num_steps, num_layers, num_tokens, top_k = block.expert_ids.shape
    single = SingleTokenTimes.of(rates, top_k) if num_tokens == 1 else None
    # Pricing every count pays if most are looked up more than once.
    look_ups = num_steps * num_layers
    pays = single is None and look_ups > (num_tokens * top_k) ** 2
    times = LayerTimes.of(rates, num_tokens, top_k) if pays else None
    seconds, columns = np.full(num_steps, head_s), block.columns()
    # What is computed, not looked up, takes more memory.
    choices_at_once = _CHOICES_AT_ONCE if single or times else _CHOICES_AT_ONCE // 4
    layers_at_once = max(choices_at_once // (num_steps * num_tokens * top_k), 1)
    for start in range(0, num_layers, layers_at_once):
        layers = slice(start, min(start + layers_at_once, num_layers))
        expert_ids = columns[:, :, layers]
        choices = assign_columns(expert_ids, table.layers[layers], costs)
        if single is not None:
            by_layer = tally_single_tokens(tally, rates, single, layers, choices)
        else:
            by_layer = tally_steps(tally, rates, times, layers, choices, expert_ids)
        for layer_s in by_layer:
            seconds += layer_s
    tally.device_s += num_steps * num_layers * rates.busy_s
    return seconds
