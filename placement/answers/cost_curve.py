"""What passes of more and more rows cost on a plan: the prediction that a server starts with."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

from placement.cost.head import head_device, mtp_head_s
from placement.cost.prefill import prefill_seconds
from placement.given.problem import PlanningProblem
from placement.pass_costs import PassCosts
from placement.plan import Plan
from placement.policies.least_time.objective import prefill_load
from placement.replay.simulate import simulate_alone
from placement.replay.system import System
from placement.routing.planning_text import PlanningText, spread_steps
from placement.workload import Workload

REPLAYED_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""So few rows touch different experts in each pass, so passes are replayed."""
EVEN_ROWS = (64, 128, 256)
"""So many read nearly every expert, so the mean pass stands for all."""

# Of one number of rows: the standard error of the mean is then about 1%.
_MOST_STEPS = 300


def cost_curve(problem: PlanningProblem, plan: Plan, text: PlanningText) -> PassCosts:
    """Seconds of passes on `plan`, by their rows, and of the MTP layers.

    Each row is taken for a sequence of its own at the workload's context; drafts of one sequence read the
    same keys and values, which is a little less. Other entries of the workload's rows do not count.

    Args:
        text: the problem's own (`planning_text`).

    Raises:
        InputError: the head's node has no device, so its speed is unknown.
    """
    head_device(problem)
    replayed = [rows for rows in REPLAYED_ROWS if rows <= len(text.trace)]
    seconds = [_replayed_s(problem, plan, text, rows) for rows in replayed]
    known = replace(problem, stats=text.stats, workload=_workload(problem, 1))
    share, held = prefill_load(known, plan.holder_table)
    seconds += [prefill_seconds(known, share, held, rows) for rows in EVEN_ROWS]
    # Where the two forms meet, more rows must not seem to take less.
    rising = tuple(accumulate(seconds, max))
    layers = range(problem.shape.num_mtp_layers)
    return PassCosts((*replayed, *EVEN_ROWS), rising, tuple(_draft_line(problem, k) for k in layers))


def _replayed_s(problem: PlanningProblem, plan: Plan, text: PlanningText, rows: int) -> float:
    steps = spread_steps(text.trace, rows, _MOST_STEPS)
    system = System.build(plan, problem.devices, problem.shape, _workload(problem, rows))
    return simulate_alone(system, [steps]).step_time_s.mean


def _workload(problem: PlanningProblem, rows: int) -> Workload:
    return replace(problem.workload, num_sequences=rows, drafts=0, accepted_drafts=0.0, acceptance=())


def _draft_line(problem: PlanningProblem, index: int) -> tuple[float, float]:
    """MTP layer `index` once a pass, and for each row: from one sequence and from eight."""
    device, few, many = head_device(problem), 1, 8
    few_s, many_s = (
        mtp_head_s(problem.shape, index, _workload(problem, sequences), device) for sequences in (few, many)
    )
    # A sequence brings its newest row, and those that hung on drafts.
    slots = 1 + index
    row_s = (many_s - few_s) / ((many - few) * slots)
    return few_s - few * slots * row_s, row_s
