"""What a plan says about the boxes, in sentences: one left out, whole layers, what statistics are worth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from placement.baselines import fixed
from placement.errors import PlanDoesNotFit
from placement.evaluate import evaluate
from placement.holders import HolderTable
from placement.problem import PlanningProblem
from placement.routing.planning_text import PlanningText, spread_steps

_MOST_STEPS = 1000
# Experts of a box count as whole layers where so many of its experts are in layers that it holds entirely.
_WHOLE_LAYERS_SHARE = 0.9
# Below these, statistics buy too little to be worth recording, and a hot set is none.
_LITTLE_GAIN, _EVEN_HOTTEST_TENTH = 0.02, 0.13


def advice(problem: PlanningProblem, table: HolderTable, text: PlanningText) -> list[str]:
    """Sentences on a plan for `problem`, most important first.

    Times are of MoE layers on `text`, the problem's own (`planning_text`).
    """
    known = replace(problem, stats=text.stats)
    steps = spread_steps(text.trace, problem.workload.tokens_per_step, _MOST_STEPS)
    ours_s = evaluate(known, table, steps).mean_s
    sentences = [*_left_out(problem, table), *_whole_layers(problem, table)]
    try:
        alone_s = evaluate(known, fixed.one_box(known), steps).mean_s
    except PlanDoesNotFit:
        pass
    else:
        if len(_boxes(problem)) > 1:
            sentences += _alone(alone_s / ours_s)
    if problem.stats is None:
        sentences.append(
            "without statistics every expert counts as equally likely: record your own text with "
            "`potluck stats` and plan again with --stats"
        )
        return sentences
    return [*sentences, _worth_of_statistics(known, steps, ours_s)]


def _alone(times_as_long: float) -> list[str]:
    """The head's box against the plan; nothing where the plan is much the same as that box alone."""
    if times_as_long > 1.005:
        return [f"the head's box alone would take {times_as_long:.2f} times as long in MoE layers"]
    if times_as_long < 0.995:
        return [
            f"the head's box alone would be {1 / times_as_long:.2f} times faster in MoE layers: use it, or "
            "leave the policy to the planner"
        ]
    return []


def _boxes(problem: PlanningProblem) -> dict[str, list[int]]:
    """Devices of each node."""
    boxes: dict[str, list[int]] = {}
    for index, device in enumerate(problem.devices):
        boxes.setdefault(device.worker.node, []).append(index)
    return boxes


def _left_out(problem: PlanningProblem, table: HolderTable) -> list[str]:
    held = table.experts_per_worker(len(problem.devices))
    room = problem.capacities()
    return [
        f"box {node} is left out: on this text it would cost more time than it saves"
        for node, devices in _boxes(problem).items()
        if room[devices].sum() > 0 and held[devices].sum() == 0
    ]


def _whole_layers(problem: PlanningProblem, table: HolderTable) -> list[str]:
    """Boxes that hold whole layers rather than experts of many."""
    sentences = []
    for node, devices in _boxes(problem).items():
        if all(problem.devices[index].is_home for index in devices):
            continue
        held = np.any([table.mask(index) for index in devices], axis=0)
        whole = held.all(axis=1)
        if whole.any() and held[whole].sum() >= _WHOLE_LAYERS_SHARE * held.sum():
            sentences.append(f"box {node} holds {int(whole.sum())} whole layers: that saves round trips")
    return sentences


def _worth_of_statistics(problem: PlanningProblem, steps: NDArray[np.integer], ours_s: float) -> str:
    """How much faster than the best plan that does not look at frequencies, and how hot the hot set is."""
    assert problem.stats is not None
    blind_s = min(
        evaluate(problem, policy(problem), steps).mean_s for policy in (fixed.uniform, fixed.whole_layers)
    )
    gain = blind_s / ours_s - 1
    if gain < 0:
        return (
            f"this plan takes {1 / (1 + gain):.2f} times as long as one that ignores frequencies: leave "
            "the policy to the planner"
        )
    counts = np.sort(problem.stats.counts.astype(np.float64), axis=1)[:, ::-1]
    tenth = max(counts.shape[1] // 10, 1)
    hottest = float((counts[:, :tenth].sum(axis=1) / counts.sum(axis=1)).mean())
    if hottest < _EVEN_HOTTEST_TENTH or gain < _LITTLE_GAIN:
        return (
            f"your routing has no hot set (the hottest tenth of experts gets {hottest:.0%} of the choices): "
            f"against plans that ignore frequencies this one gains {gain:.0%}"
        )
    return (
        f"the hottest tenth of experts gets {hottest:.0%} of the choices: against plans that ignore "
        f"frequencies this one gains {gain:.0%}"
    )
