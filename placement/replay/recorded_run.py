"""Replays the passes of one recorded run, one sequence: prefill chunk by chunk, decode step by step.

Where `simulate_alone` cuts a trace into passes itself, these take the passes that the runtime made, rejected
drafts included, so that counts are exactly the dispatcher's. Nothing is streamed into a GPU, as the runtime
does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from placement.cost.prefill import prefill_head_seconds, prefill_rates
from placement.replay.simulate import add_block
from placement.replay.steps import StepBlock
from placement.replay.system import System
from placement.replay.tally import SimulationReport, Tally


def replay_decode(system: System, passes: Sequence[NDArray[np.integer]], num_tokens: int) -> SimulationReport:
    """Decode steps of one sequence.

    Args:
        passes: of each step int [1 + drafts, num_moe_layers, top_k]; drafts may be fewer than the workload's.
        num_tokens: that the steps added to the text.

    Raises:
        InputError: no pass.
    """
    tally = Tally(system)
    duration_s = 0.0
    for num_rows in sorted({len(rows) for rows in passes}):
        blocks = np.stack([rows for rows in passes if len(rows) == num_rows]).transpose(0, 2, 1, 3)
        workload = replace(system.workload, drafts=num_rows - 1)
        same = system if workload == system.workload else system.with_workload(workload)
        new_tokens = np.full((len(blocks), 1), num_tokens / len(passes))
        # The MTP layers run in every step, however few drafts the next one can still use.
        head_s = same.head_s - same.mtp_s + system.mtp_s
        seconds = add_block(tally, same.rates, StepBlock(blocks, new_tokens), head_s)
        tally.add_steps(seconds, new_tokens)
        tally.device_s[system.head] += len(blocks) * head_s
        duration_s += float(seconds.sum())
    tally.answered_rows[:] = tally.message_rows
    return tally.report("closed form", duration_s)


def replay_prefill(system: System, chunks: Sequence[NDArray[np.integer]]) -> SimulationReport:
    """One prompt's passes; `step_time_s` is of a pass.

    Args:
        chunks: of each pass int [num_tokens, num_moe_layers, top_k], the prompt in order.

    Raises:
        InputError: no pass.
    """
    tally = Tally(system)
    duration_s, context = 0.0, 0
    for index, chunk in enumerate(chunks):
        workload = replace(system.workload, context=context)
        problem = replace(system.problem, workload=workload)
        rates = prefill_rates(problem, len(chunk))
        head_s = prefill_head_seconds(problem, len(chunk), is_last=index == len(chunks) - 1)
        new_tokens = np.full((1, 1), float(len(chunk)))
        block = StepBlock(chunk.transpose(1, 0, 2)[None], new_tokens)
        seconds = add_block(tally, rates, block, head_s)
        tally.add_steps(seconds, new_tokens)
        tally.device_s[system.head] += head_s
        duration_s += float(seconds.sum())
        context += len(chunk)
    tally.answered_rows[:] = tally.message_rows
    return tally.report("closed form", duration_s)
