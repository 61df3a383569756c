"""Which device of which box the head should compute on, and what that is worth."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from placement.answers.prediction_range import NO_DIFFERENCE, is_promised, range_for
from placement.cost.head import head_seconds
from placement.errors import PlanDoesNotFit
from placement.given.cluster_spec import ClusterSpec
from placement.given.other_head import HeadPlace, head_place, head_places, with_head
from placement.given.problem import PlanningProblem
from placement.hardware.spread import Range, Spreads
from placement.holders import HolderTable
from placement.policies.baselines import fixed
from placement.policies.least_time.objective import prefill_pass_s, speed
from placement.policies.registry import place as place_experts
from placement.routing.planning_text import PlanningText, planning_text, spread_steps
from placement.units import compared

ProblemOn = Callable[[ClusterSpec], PlanningProblem]
"""The problem of a cluster; raises PlanDoesNotFit where the head or the experts have no room."""

# Steps that plans by rule are ranked on, and that full plans are judged on.
_RANKED_STEPS, _JUDGED_STEPS = 200, 2000
# Heads that are planned for in full beside the named one: so many, and none that is much behind the best in
# plans by rule. A search gains 9% over these in the median. What it would gain for the heads left out nobody
# looks at, so their figures are the least they do.
_MOST_PLANNED, _FAR_BEHIND = 3, 1.25
LEAST_GAIN = 0.01
"""The named head stays where no other that was planned for in full gains more."""
# Advice is given from this gain on; a full plan is made where plans by rule already gain so much.
_WORTH_SAYING, _PROMISING = 0.05, 0.03


@dataclass(frozen=True, slots=True, eq=False)
class TriedHead:
    """One place for the head.

    Attributes:
        num_alike: boxes that it stands for, itself included.
        cluster: the boxes as this head sees them.
        problem, table: a placement for it; None where something has no room, and `note` says what.
        is_planned: whether the placement is the policy's; else the best of a few by rule, which is slower.
        step_s: of a decode step, the head included; infinite where nothing has room.
        prompt_s: of the prompts that fall to it.
        prefill_tokens_per_s: reading a prompt, None where nothing has room.
    """

    place: HeadPlace
    num_alike: int
    cluster: ClusterSpec
    problem: PlanningProblem | None = None
    table: HolderTable | None = None
    is_planned: bool = False
    step_s: float = math.inf
    prompt_s: float = 0.0
    prefill_tokens_per_s: float | None = None
    note: str = ""

    @property
    def total_s(self) -> float:
        return self.step_s + self.prompt_s

    @property
    def tokens_per_s(self) -> float | None:
        return None if self.problem is None else self.problem.workload.tokens_out_per_step / self.step_s


@dataclass(frozen=True, slots=True, eq=False)
class HeadChoice:
    """All heads that were tried.

    Attributes:
        tried: those planned for first, then those ranked by plans by rule, then those without room; the
            fastest first in each.
        best: what is chosen.
        problem, table: its full plan.
        named: the cluster file's, None where its node has no device.
        spreads: how far measured speeds lie from predicted ones.
    """

    tried: tuple[TriedHead, ...]
    best: TriedHead
    problem: PlanningProblem
    table: HolderTable
    named: TriedHead | None
    spreads: Spreads

    def gain(self, tried: TriedHead) -> float | None:
        """How much faster than the named head, prompts counted, 0.02 for 2%; None where either is unknown."""
        if self.named is None or self.named.problem is None or tried.problem is None:
            return None
        return self.named.total_s / tried.total_s - 1

    def is_promised(self, tried: TriedHead) -> bool | None:
        """Whether the gain is large enough to be promised; None where it is unknown."""
        gain = self.gain(tried)
        if gain is None or self.named is None:
            return None
        return is_promised(1 + gain, *(_range(each, self.spreads) for each in (self.named, tried)))


def choose_head(cluster: ClusterSpec, problem_on: ProblemOn, policy: str, spreads: Spreads) -> HeadChoice:
    """Plan for the most promising heads in full, and take the fastest.

    Time is that of a whole decode step and of the prompts that fall to it. All heads are ranked by plans by
    rule first. Every plan survives as many losses as the first head's whose plan fits, the named one before
    others.

    Args:
        problem_on: of a cluster with its head moved.
        spreads: by which a gain is one that can be promised. What is chosen does not depend on them.

    Raises:
        PlanDoesNotFit: no head leaves room for the experts; the message is the named head's.
        InputError: as the policy.
    """
    ranked, text = _ranked(cluster, head_places(cluster), problem_on, _RANKED_STEPS)
    named_place = head_place(cluster)
    fitting = [tried for tried in ranked if tried.problem is not None]
    if not fitting or text is None:
        raise PlanDoesNotFit(ranked[0].note)
    steps = _steps(text, fitting[0].problem, _JUDGED_STEPS)
    near = [tried for tried in fitting if tried.total_s <= fitting[0].total_s * _FAR_BEHIND]
    in_full = {tried.place for tried in near[:_MOST_PLANNED]} | {named_place}
    planned = sorted(
        (_planned(tried, policy, text, steps) for tried in fitting if tried.place in in_full), key=_total_s
    )
    others = [tried for tried in ranked if tried.problem is None or tried.place not in in_full]
    everything = (*planned, *others)
    named = next((tried for tried in everything if tried.place == named_place), None)
    best = planned[0]
    if named is not None and named.total_s <= best.total_s * (1 + LEAST_GAIN):
        best = named
    assert best.problem is not None
    assert best.table is not None
    return HeadChoice(everything, best, best.problem, best.table, named, spreads)


def head_advice(
    cluster: ClusterSpec,
    problem: PlanningProblem,
    table: HolderTable,
    problem_on: ProblemOn,
    policy: str,
    text: PlanningText,
    spreads: Spreads,
) -> list[str]:
    """A sentence on another head where a plan with it was made and is faster by 5% or more.

    It also says where even so much may be no difference.

    Args:
        cluster: as the file has it.
        problem, table: the plan's own; its head may be another than the file's.
    """
    if problem.head is None:
        return []
    steps = _steps(text, problem, _JUDGED_STEPS)
    few = _steps(text, problem, _RANKED_STEPS)
    known = replace(problem, stats=text.stats)
    head_s = head_seconds(problem).total_s
    ours_s = head_s + speed(known, table, steps).total_s
    by_rule_s = head_s + min(speed(known, each, few).total_s for each in _by_rule(known))
    tier = problem.devices[problem.head].tier
    others = {
        place: number
        for place, number in head_places(cluster).items()
        if (place.node, _tier_kind(cluster, place)) != (tier.node, (tier.kind, tier.device))
    }
    ranked, _ = _ranked(cluster, others, problem_on, _RANKED_STEPS, problem.survive, text)
    if not ranked or ranked[0].total_s * (1 + _PROMISING) > by_rule_s:
        return []
    other = _planned(ranked[0], policy, text, steps)
    gain = ours_s / other.total_s - 1
    if gain < _WORTH_SAYING:
        return []
    counted = ", prompts counted" if problem.workload.prefill_passes_per_step else ""
    ranges = range_for(problem, table, spreads), _range(other, spreads)
    unsure = "" if is_promised(1 + gain, *ranges) else f", {NO_DIFFERENCE}"
    return [
        f"with the head on {other.place} a whole step would be {compared(1 + gain)}{counted}{unsure}: --head "
        f"{other.place} plans for it, --head auto compares all"
    ]


def _tier_kind(cluster: ClusterSpec, place: HeadPlace) -> tuple[str, str]:
    node = next(node for node in cluster.nodes if node.name == place.node)
    device = next(device for device in node.devices if device.name == place.device)
    return device.kind, device.torch_device


def _ranked(
    cluster: ClusterSpec,
    places: dict[HeadPlace, int],
    problem_on: ProblemOn,
    most_steps: int,
    survive: int | None = None,
    text: PlanningText | None = None,
) -> tuple[list[TriedHead], PlanningText | None]:
    """Each head with the best of a few plans by rule, the fastest first; those without room last."""
    found = []
    for place, number in places.items():
        seen = with_head(cluster, place)
        try:
            problem = problem_on(seen)
        except PlanDoesNotFit as error:
            found.append(TriedHead(place, number, seen, note=str(error)))
            continue
        survive = problem.survive if survive is None else survive
        problem = replace(problem, survive=survive)
        # The same for all heads: it depends on statistics and workload alone.
        text = planning_text(problem) if text is None else text
        steps = _steps(text, problem, most_steps)
        known = replace(problem, stats=text.stats)
        tables = [_judged(place, number, seen, problem, table, text, steps) for table in _by_rule(known)]
        found.append(min(tables, key=_total_s))
    return sorted(found, key=_total_s), text


def _by_rule(problem: PlanningProblem) -> list[HolderTable]:
    """Plans that take no search."""
    tables = [policy(problem) for policy in (fixed.uniform, fixed.whole_layers, fixed.hottest_per_layer)]
    with contextlib.suppress(PlanDoesNotFit):
        tables.append(fixed.one_box(problem))
    return tables


def _planned(tried: TriedHead, policy: str, text: PlanningText, steps: NDArray[np.integer]) -> TriedHead:
    assert tried.problem is not None
    table = place_experts(tried.problem, policy)
    judged = _judged(tried.place, tried.num_alike, tried.cluster, tried.problem, table, text, steps)
    return replace(judged, is_planned=True)


def _judged(
    place: HeadPlace,
    num_alike: int,
    cluster: ClusterSpec,
    problem: PlanningProblem,
    table: HolderTable,
    text: PlanningText,
    steps: NDArray[np.integer],
) -> TriedHead:
    known = replace(problem, stats=text.stats)
    found = speed(known, table, steps)
    return TriedHead(
        place,
        num_alike,
        cluster,
        problem,
        table,
        step_s=head_seconds(problem).total_s + found.decode_s,
        prompt_s=found.prompt_s,
        prefill_tokens_per_s=problem.workload.prefill_tokens / prefill_pass_s(known, table),
    )


def _range(tried: TriedHead, spreads: Spreads) -> Range:
    """Of the speed of one with room."""
    assert tried.problem is not None
    return range_for(tried.problem, tried.table, spreads)


def _steps(text: PlanningText, problem: PlanningProblem | None, most_steps: int) -> NDArray[np.integer]:
    assert problem is not None
    return spread_steps(text.trace, problem.workload.tokens_per_step, most_steps)


def _total_s(tried: TriedHead) -> float:
    return tried.total_s
