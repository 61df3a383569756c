"""From a plan in use to a better one within a budget of moved bytes or seconds, and when that has paid."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from placement.errors import PlanDoesNotFit
from placement.given.problem import PlanningProblem
from placement.holders import HolderTable
from placement.policies.cover import Boxes
from placement.policies.least_time.copies import add_copies
from placement.policies.least_time.objective import Speed, objective_s, speed
from placement.policies.least_time.policy import least_time, search_sample
from placement.policies.least_time.refine import refine
from placement.policies.least_time.second_holders import second_holders
from placement.policies.least_time.tiers import faster_beside, useless_on_disk
from placement.routing.planning_text import FEWEST_STEPS, planning_text, spread_steps, stats_of
from placement.units import size

_MOST_CHECK_STEPS = 1000
# A budget of seconds becomes one of experts by halving, to about 3%.
_HALVINGS = 5


@dataclass(frozen=True, slots=True, eq=False)
class Replan:
    """A reachable placement.

    Attributes:
        moved_experts, moved_bytes: copies that devices must receive; what they drop costs nothing.
        transfer_s: until the last has arrived, if nothing else used the links.
        before_s, after_s: seconds of MoE layers a step on the new text.
        prompt_before_s, prompt_after_s: of reading the prompts that fall to a step, 0 where none do.
        payback_s: from the start of the move until more tokens have come out than without it, if no token
            does while it lasts; None where nothing is gained.
    """

    table: HolderTable
    moved_experts: int
    moved_bytes: int
    transfer_s: float
    before_s: float
    after_s: float
    prompt_before_s: float
    prompt_after_s: float
    payback_s: float | None


def replan(
    problem: PlanningProblem,
    current: HolderTable,
    *,
    budget_bytes: float = math.inf,
    budget_s: float = math.inf,
    head_s: float = 0.0,
) -> Replan:
    """The best placement for the problem's statistics that can be reached from `current`.

    Searched from `current` by as many moves as the budget allows, and, where that is near enough, the plan
    that would be made from nothing. What does not gain on the last third of the text when made from the
    rest is left as it is. What lets more experts survive `problem.survive` losses counts before speed.

    Args:
        budget_bytes: that may be sent to devices.
        budget_s: that sending may take (`transfer_seconds`).
        head_s: the head's own seconds a step, part of what a gain is measured against.

    Raises:
        PlanDoesNotFit: `current` holds more than the devices have room for.
    """
    text = planning_text(problem)
    stats, trace = text.stats, text.trace
    known = replace(problem, stats=stats)
    cut = len(trace) * 2 // 3
    early = replace(problem, stats=stats_of(stats, trace[:cut]))
    places = problem.shape.num_routed_experts * len(problem.devices)
    most = places if math.isinf(budget_bytes) else min(int(budget_bytes // problem.expert_bytes), places)
    over = current.experts_per_worker(len(problem.devices)) - problem.capacities()
    if over.max() > 0:
        worker = problem.devices[int(over.argmax())].tier
        raise PlanDoesNotFit(
            f"device {worker.name!r} holds {size(int(over.max()) * problem.expert_bytes)} more than its "
            f"budget of {size(worker.budget_bytes)}: expected a current plan that fits the cluster"
        )

    target, moves = _within(problem, known, current, trace, most, budget_s)
    check = spread_steps(trace[cut:], problem.workload.tokens_per_step, _MOST_CHECK_STEPS)
    trial = _reached(early, current, trace[:cut], moves)
    tables = [current]
    # A few tokens are no reason to move anything, whatever text drawn from them says.
    is_known = stats.num_tokens >= FEWEST_STEPS * problem.workload.tokens_per_step
    short = [_short(problem, table) for table in (current, trial, target)]
    gains = objective_s(early, trial, check) < objective_s(early, current, check) and short[1] <= short[0]
    if moves and ((is_known and gains) or short[2] < short[0]):
        tables.append(target)
        fresh = least_time(problem)
        if _arrivals(current, fresh) <= most and transfer_seconds(problem, current, fresh) <= budget_s:
            tables.append(fresh)
    steps = spread_steps(trace, problem.workload.tokens_per_step, _MOST_CHECK_STEPS)
    speeds = [speed(known, table, steps) for table in tables]
    best = min(range(len(tables)), key=lambda i: (_short(problem, tables[i]), speeds[i].total_s))
    return _report(problem, current, tables[best], speeds[0], speeds[best], head_s)


def _within(
    problem: PlanningProblem,
    known: PlanningProblem,
    current: HolderTable,
    trace: NDArray[np.integer],
    most: int,
    budget_s: float,
) -> tuple[HolderTable, int]:
    """The search's result within both budgets, and the moves that it was allowed."""
    found = _reached(known, current, trace, most)
    if transfer_seconds(problem, current, found) <= budget_s:
        return found, most
    table, least, limit = current, 0, _arrivals(current, found)
    for _ in range(_HALVINGS):
        middle = (least + limit) // 2
        found = _reached(known, current, trace, middle)
        if transfer_seconds(problem, current, found) <= budget_s:
            table, least = found, middle
        else:
            limit = middle
    return table, least


def _short(problem: PlanningProblem, table: HolderTable) -> int:
    """Holders that experts lack to survive `problem.survive` losses."""
    return int(Boxes.of(problem).short(table.masks(len(problem.devices)), problem.survive).sum())


def _reached(
    problem: PlanningProblem, current: HolderTable, text: NDArray[np.integer], most_moves: int
) -> HolderTable:
    """What a search from `current` finds whose second holders can be paid for too; `current` if nothing."""
    searched = most_moves
    for _ in range(_HALVINGS):
        table = _searched(problem, current, text, searched)
        if problem.survive:
            table = second_holders(problem, table, search_sample(problem, text))
        if _arrivals(current, table) <= most_moves:
            return table
        searched //= 2
    return current


def _searched(
    problem: PlanningProblem, current: HolderTable, text: NDArray[np.integer], most_moves: int
) -> HolderTable:
    """A search from `current`; copies that are there stay where they fit, others come if moves are left."""
    num_devices = len(problem.devices)
    layers = search_sample(problem, text)
    single = HolderTable.from_single(refine(problem, current.table[:, :, 0], layers, most_moves))
    masks = single.masks(num_devices)
    room = problem.capacities() - masks.sum(axis=(1, 2))
    assert problem.stats is not None
    heat = problem.stats.counts.astype(np.int64).ravel()
    faster = faster_beside(problem)
    # Slow memory last: what a disk would keep beside faster memory's copy helps nobody.
    for device in sorted(range(num_devices), key=lambda d: problem.devices[d].tier.kind == "disk"):
        useless = useless_on_disk(problem, faster, masks)[device]
        kept = np.flatnonzero((current.mask(device) & ~masks[device] & ~useless).ravel())
        kept = kept[np.argsort(-heat[kept], kind="stable")][: max(int(room[device]), 0)]
        masks[device].ravel()[kept] = True
    table = HolderTable.from_masks(masks)
    left = most_moves - _arrivals(current, table)
    return add_copies(problem, table, layers, left) if left > 0 else table


def _arrivals(current: HolderTable, table: HolderTable) -> int:
    """Copies that devices must receive."""
    num_holders = int(max(current.table.max(), table.table.max())) + 1
    return int(_new_cells(current, table, num_holders).sum())


def _new_cells(current: HolderTable, table: HolderTable, num_devices: int) -> NDArray[np.bool_]:
    """bool [num_devices, num_layers, num_experts]: held in `table` and not in `current`."""
    return table.masks(num_devices) & ~current.masks(num_devices)


def transfer_seconds(problem: PlanningProblem, current: HolderTable, table: HolderTable) -> float:
    """How long the move takes on idle links, each way of each node's link at its bandwidth.

    An expert is sent by the first of its holders: devices at home before others. Memory is charged at both
    ends too, for moves within a box.
    """
    devices = problem.devices
    arrivals = _new_cells(current, table, len(devices))
    held = current.masks(len(devices))
    by_place = np.argsort([not device.is_home for device in devices], kind="stable")
    sender = by_place[np.argmax(held[by_place], axis=0)]
    received = arrivals.sum(axis=(1, 2)) * float(problem.expert_bytes)
    sent = np.zeros(len(devices))
    for mask in arrivals:
        sent += np.bincount(sender[mask], minlength=len(devices)) * float(problem.expert_bytes)
    seconds = [0.0]
    for node in {device.tier.node for device in devices}:
        members = [i for i, device in enumerate(devices) if device.tier.node == node]
        link = min(devices[i].link_bytes_per_s for i in members)
        seconds += [received[members].sum() / link, sent[members].sum() / link]
    seconds += [(received[i] + sent[i]) / device.bandwidth_bytes_per_s for i, device in enumerate(devices)]
    return float(max(seconds))


def _report(
    problem: PlanningProblem,
    current: HolderTable,
    table: HolderTable,
    before: Speed,
    after: Speed,
    head_s: float,
) -> Replan:
    moved = _arrivals(current, table)
    transfer_s = transfer_seconds(problem, current, table)
    # Tokens lost while nothing comes out, over tokens gained a second afterwards.
    payback_s = None
    before_s, after_s = before.total_s + head_s, after.total_s + head_s
    if after_s < before_s:
        lost = transfer_s / before_s
        payback_s = transfer_s + lost / (1 / after_s - 1 / before_s)
    return Replan(
        table=table,
        moved_experts=moved,
        moved_bytes=moved * problem.expert_bytes,
        transfer_s=transfer_s,
        before_s=before.decode_s,
        after_s=after.decode_s,
        prompt_before_s=before.prompt_s,
        prompt_after_s=after.prompt_s,
        payback_s=payback_s,
    )
