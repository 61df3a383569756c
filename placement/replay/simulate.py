"""Replays a trace through a plan on a cluster: how fast, what is busy, what bounds each layer.

One pass at a time meets nobody else's requests, so its time is the cost model's closed form, computed for
thousands of passes at once. docs/simulator.md says what is modelled.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from placement.cost.roofline import ExpertRates
from placement.patience import Patience
from placement.replay.closed_form import choose_holders, replay_block
from placement.replay.layer_tally import LayerTally
from placement.replay.queueing.scenario import Event, Stream
from placement.replay.queueing.simulation import simulate_queueing
from placement.replay.steps import Acceptance, StepBlock, Trace, step_blocks
from placement.replay.system import System
from placement.replay.tally import SimulationReport, Tally


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

    Linear in tokens, bounded memory. Two boxes behind one link are charged as if each had it alone;
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
    tally.answered_rows[:] = tally.message_rows
    tally.device_s[system.head] += tally.num_steps * system.head_s
    return tally.report("closed form", duration_s)


def add_block(tally: Tally, rates: ExpertRates, block: StepBlock, head_s: float) -> NDArray[np.float64]:
    """Count passes and their devices' work; seconds of each, float64 [num_steps].

    Args:
        rates: of passes of this size on `tally.system`.
        head_s: the head's own time in each.
    """
    system = tally.system
    choose = choose_holders(system.plan.holder_table, system.plan.replica_costs)
    record = LayerTally(tally, rates)
    seconds = replay_block(rates, system.shape.num_experts, block, choose, record, head_s=head_s)
    num_steps, num_layers = block.expert_ids.shape[:2]
    tally.device_s += num_steps * num_layers * rates.busy_s
    return seconds
