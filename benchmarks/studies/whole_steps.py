"""Tokens/s of whole steps, with as many drafts as are best: what the pay map, residency and scale share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from operator import mul

import numpy as np
from numpy.typing import NDArray

from benchmarks.studies.device_figures import ACCEPTANCE, FORM
from placement.cost.head import head_seconds
from placement.errors import PlanDoesNotFit
from placement.given.cluster_spec import ClusterSpec
from placement.given.problem import PlanningProblem, planning_devices
from placement.given.stats import RoutingStats
from placement.holders import HolderTable
from placement.model_shape import STEP_3_5_FLASH as SHAPE
from placement.policies.baselines.pipeline import pipeline
from placement.replay.evaluate import evaluate
from placement.routing.text import Text
from placement.weight_format import Q4_K
from placement.workload import HeadForm, HeadForms, Workload

EXPERT_BYTES = SHAPE.expert_bytes(Q4_K.bits)
CONTEXTS = (4096, 32768)
DEPTHS = range(len(ACCEPTANCE) + 1)
PLANNED_DEPTHS = (0, 2)
"""Plans are made for so many drafts, and judged with any: that loses up to 2% and saves half of the time."""


@dataclass(frozen=True, slots=True)
class Best:
    """The fastest number of drafts."""

    tokens_per_s: float
    drafts: int


NOTHING = Best(0.0, 0)
"""Of what does not fit."""


def workload(drafts: int, context: int = CONTEXTS[0], sequences: int = 1) -> Workload:
    """A step with so many drafts, of which those hold that others measured."""
    chances = ACCEPTANCE[:drafts]
    form = HeadForm.of(FORM)
    return Workload(
        num_sequences=sequences,
        drafts=drafts,
        accepted_drafts=sum(accumulate(chances, mul)),
        context=context,
        head_bits_per_weight=Q4_K.bits,
        acceptance=chances,
        head_forms=HeadForms(form, form, form, form),
    )


def problem_of(cluster: ClusterSpec, stats: RoutingStats | None, sequences: int = 1) -> PlanningProblem:
    """What a plan is made for, without drafts; the head's memory is left out of budgets."""
    return PlanningProblem(
        SHAPE,
        planning_devices(cluster),
        EXPERT_BYTES,
        stats,
        workload(0, sequences=sequences),
        expert_form=FORM,
    )


def with_drafts(problem: PlanningProblem, drafts: int, context: int = CONTEXTS[0]) -> PlanningProblem:
    """The same with another number of drafts and another context."""
    return replace(problem, workload=workload(drafts, context, problem.workload.num_sequences))


def moe_seconds(
    problem: PlanningProblem, table: HolderTable, held_out: NDArray[np.integer]
) -> tuple[float, ...]:
    """Of the MoE layers of a step of each of `DEPTHS`."""
    return tuple(evaluate(with_drafts(problem, drafts), table, held_out).mean_s for drafts in DEPTHS)


def shortest(times: Iterable[Sequence[float]]) -> tuple[float, ...]:
    """Of several plans' times by drafts, the shortest of each; infinite without a plan."""
    none = (float("inf"),) * len(DEPTHS)
    return tuple(min(column) for column in zip(none, *times, strict=True))


def head_step_seconds(problem: PlanningProblem, context: int) -> tuple[float, ...]:
    """Of the head in a step of each of `DEPTHS`."""
    return tuple(head_seconds(with_drafts(problem, drafts, context)).total_s for drafts in DEPTHS)


def pipeline_seconds(
    problem: PlanningProblem, held_out: NDArray[np.integer], context: int
) -> tuple[float, ...]:
    """Of whole steps of each of `DEPTHS` where layers are on boxes as a whole; infinite where none fit."""
    times = []
    for drafts in DEPTHS:
        try:
            found = pipeline(with_drafts(problem, drafts, context), Text(held_out))
        except PlanDoesNotFit:
            times.append(float("inf"))
            continue
        times.append(found.mean_s + (found.head_s or 0.0))
    return tuple(times)


def best_depth(step_s: Sequence[float], sequences: int = 1) -> Best:
    """Of the times of steps by drafts; of equals the fewest drafts."""
    speeds = [
        workload(drafts, sequences=sequences).tokens_out_per_step / seconds
        for drafts, seconds in enumerate(step_s)
    ]
    best = max(speeds)
    return Best(best, speeds.index(best)) if best > 0 else NOTHING


def together(first: Iterable[float], second: Iterable[float]) -> tuple[float, ...]:
    """Of parts of a step that follow each other, by drafts."""
    return tuple(a + b for a, b in zip(first, second, strict=True))
