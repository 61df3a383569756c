"""What a plan says about the boxes, in sentences: one left out, whole layers, what statistics are worth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from placement.errors import PlanDoesNotFit
from placement.given.problem import PlanningProblem
from placement.holders import HolderTable
from placement.policies.baselines import fixed
from placement.policies.least_time.copies import add_copies
from placement.policies.least_time.objective import Speed, prefill_pass_s, speed
from placement.policies.least_time.policy import search_sample
from placement.policies.least_time.refine import refine
from placement.replay.evaluate import evaluate
from placement.routing.planning_text import PlanningText, spread_steps
from placement.units import compared

_MOST_STEPS = 1000
# Experts of a box count as whole layers where so many of its experts are in layers that it holds entirely.
_WHOLE_LAYERS_SHARE = 0.9
# Whole layers save round trips where at most this share of layers leave home.
_FEWER_LAYERS = 0.95
# A hot set is none below this share of the choices.
_EVEN_HOTTEST_TENTH = 0.13
# Plans so near each other take as long; less than this gain is not worth another policy.
_SAME, _LITTLE_GAIN = 0.005, 0.01
# A short search for a use of boxes that are left out.
_READS, _ROUNDS = 2000, 4


def advice(problem: PlanningProblem, table: HolderTable, text: PlanningText) -> list[str]:
    """Sentences on a plan for `problem`, most important first; each one holds by evaluation.

    Times are of MoE layers and of the prompts that fall to them on `text`, the problem's own
    (`planning_text`).
    """
    known = replace(problem, stats=text.stats)
    steps = spread_steps(text.trace, problem.workload.tokens_per_step, _MOST_STEPS)
    ours = speed(known, table, steps)
    sentences = [*_left_out(known, table, text, steps, ours), *_whole_layers(known, table, steps, ours)]
    try:
        alone = fixed.one_box(known)
    except PlanDoesNotFit:
        pass
    else:
        if len(_boxes(problem)) > 1:
            sentences += _alone(known, alone, table, speed(known, alone, steps), ours)
    if problem.stats is None:
        sentences.append(
            "without statistics every expert counts as equally likely; `potluck whatif` and studies plan for "
            "text that uses experts as unevenly as other models do, so their speeds differ: record your own "
            "text with `potluck stats` and plan again with --stats"
        )
        return sentences
    return [*sentences, _worth_of_statistics(known, steps, ours)]


def _alone(
    problem: PlanningProblem, one_box: HolderTable, table: HolderTable, alone: Speed, ours: Speed
) -> list[str]:
    """The head's box against the plan; nothing where the plan is much the same as that box alone."""
    times_as_long = alone.total_s / ours.total_s
    if times_as_long < 1 - _SAME:
        counted = " and prompts together" if problem.workload.prefill_passes_per_step else ""
        return [
            f"the head's box alone would be {compared(1 / times_as_long)} in MoE layers{counted}: use it, or "
            "leave the policy to the planner, and ask for no second holders (--survive 0)"
        ]
    if times_as_long > 1 + _SAME:
        longer = alone.decode_s / ours.decode_s
        sentence = f"the head's box alone would take {longer:.2f} times as long in MoE layers"
        if problem.head is not None:
            prompts = prefill_pass_s(problem, one_box) / prefill_pass_s(problem, table)
            sentence += f", {prompts:.2f} times as long for prompts"
        return [sentence]
    return []


def _boxes(problem: PlanningProblem) -> dict[str, list[int]]:
    """Devices of each node."""
    boxes: dict[str, list[int]] = {}
    for index, device in enumerate(problem.devices):
        boxes.setdefault(device.tier.node, []).append(index)
    return boxes


def _left_out(
    problem: PlanningProblem,
    table: HolderTable,
    text: PlanningText,
    steps: NDArray[np.integer],
    ours: Speed,
) -> list[str]:
    """Boxes without experts, and what plans that use them would take."""
    held = table.experts_per_worker(len(problem.devices))
    room = problem.capacities()
    left_out = {
        node: devices
        for node, devices in _boxes(problem).items()
        if room[devices].sum() > 0 and held[devices].sum() == 0
    }
    if not left_out:
        return []
    tried = [
        (trial.experts_per_worker(len(held)), speed(problem, trial, steps).total_s)
        for trial in _using_more(problem, table, text)
    ]
    sentences = []
    for node, devices in left_out.items():
        used = np.zeros(len(held), dtype=np.bool_)
        used[devices] = True
        seconds = [total_s for experts, total_s in tried if experts[used].sum() > 0]
        seconds += [
            speed(problem, trial, steps).total_s for trial in _spread(problem, (held > 0) | used, used)
        ]
        if not seconds:
            continue
        gain = 1 - min(seconds) / ours.total_s
        if gain <= 0:
            sentences.append(f"box {node} is left out: on this text it would cost more time than it saves")
        elif gain < _LITTLE_GAIN:
            sentences.append(f"box {node} is left out: plans tried with it gain less than {_LITTLE_GAIN:.0%}")
        else:
            sentences.append(
                f"box {node} is left out, though a plan with it takes {gain:.0%} less time: leave the policy "
                "to the planner"
            )
    return sentences


def _using_more(problem: PlanningProblem, table: HolderTable, text: PlanningText) -> list[HolderTable]:
    """Where a short search goes from the plan, on whatever boxes it likes, with copies and without."""
    layers = search_sample(problem, text.trace, _READS)
    single = HolderTable.from_single(refine(problem, table.table[:, :, 0], layers, most_rounds=_ROUNDS))
    return [single, add_copies(problem, table, layers), add_copies(problem, single, layers)]


def _spread(
    problem: PlanningProblem, devices: NDArray[np.bool_], used: NDArray[np.bool_]
) -> Iterator[HolderTable]:
    """Placements by rule on some devices only, those that put experts on one of `used`."""
    only = _with_room(problem, np.where(devices, problem.capacities(), 0))
    for policy in (fixed.uniform, fixed.whole_layers, fixed.hottest_per_layer):
        table = policy(only)
        if table.experts_per_worker(len(devices))[used].sum() > 0:
            yield table


def _with_room(problem: PlanningProblem, num_experts: NDArray[np.integer]) -> PlanningProblem:
    """The problem with room for so many experts on each device."""
    size = problem.expert_bytes
    devices = [
        replace(device, tier=replace(device.tier, budget_bytes=number * size))
        for device, number in zip(problem.devices, num_experts.tolist(), strict=True)
    ]
    return replace(problem, devices=tuple(devices))


def _whole_layers(
    problem: PlanningProblem, table: HolderTable, steps: NDArray[np.integer], ours: Speed
) -> list[str]:
    """Boxes that hold whole layers rather than experts of many, where fewer layers leave home by that."""
    found = []
    for node, devices in _boxes(problem).items():
        if all(problem.devices[index].is_home for index in devices):
            continue
        held = np.any([table.mask(index) for index in devices], axis=0)
        whole = held.all(axis=1)
        if whole.any() and held[whole].sum() >= _WHOLE_LAYERS_SHARE * held.sum():
            found.append((node, int(whole.sum())))
    if not found:
        return []
    held_by = table.experts_per_worker(len(problem.devices))
    spread = evaluate(problem, fixed.uniform(_with_room(problem, held_by)), steps).remote_layers.mean()
    if ours.remote_layers > _FEWER_LAYERS * spread:
        return []
    return [
        f"box {node} holds {number} whole layers, which saves round trips: {ours.remote_layers:.1f} layers a "
        f"step ask another box, {spread:.1f} if every layer were spread over all boxes"
        for node, number in found
    ]


def _worth_of_statistics(problem: PlanningProblem, steps: NDArray[np.integer], ours: Speed) -> str:
    """How much faster than the best plan that does not look at frequencies, and how hot the hot set is."""
    assert problem.stats is not None
    blind = [speed(problem, policy(problem), steps) for policy in (fixed.uniform, fixed.whole_layers)]
    gain = min(each.total_s for each in blind) / ours.total_s - 1
    if gain < -_SAME:
        return (
            f"this plan takes {1 / (1 + gain):.2f} times as long as one that ignores frequencies: leave "
            "the policy to the planner"
        )
    counts = np.sort(problem.stats.counts.astype(np.float64), axis=1)[:, ::-1]
    tenth = max(counts.shape[1] // 10, 1)
    hottest = float((counts[:, :tenth].sum(axis=1) / counts.sum(axis=1)).mean())
    worth = f"beside plans that ignore frequencies this one is {compared(1 + max(gain, 0.0))}"
    if problem.workload.prefill_passes_per_step:
        worth += ", prompts counted"
    if hottest < _EVEN_HOTTEST_TENTH:
        return (
            f"your routing has no hot set (the hottest tenth of experts gets {hottest:.0%} of the choices): "
            f"{worth}"
        )
    return f"the hottest tenth of experts gets {hottest:.0%} of the choices: {worth}"
