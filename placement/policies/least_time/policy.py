"""The planner's own policy: the least expected time of a step it can find, never above a baseline's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from placement.errors import PlanDoesNotFit
from placement.given.problem import PlanningProblem
from placement.holders import HolderTable
from placement.policies.baselines import fixed
from placement.policies.least_time.beside_copies import move_beside_copies
from placement.policies.least_time.copies import add_copies
from placement.policies.least_time.heat_blocks import MOST_GROUPS_FOR_FINE, search_heat_blocks
from placement.policies.least_time.kicks import kick, num_kicks
from placement.policies.least_time.layer_search import LayerSample, sample_layers
from placement.policies.least_time.objective import objective_s
from placement.policies.least_time.refine import refine
from placement.policies.least_time.second_holders import survivable
from placement.policies.least_time.tiers import fill_fast_memory
from placement.routing.planning_text import (
    PlanningText,
    expected_frequencies,
    planning_text,
    spread_steps,
    stats_of,
)

# Candidates are compared on so many steps: enough to tell 1% apart.
_MOST_CHECK_STEPS = 1000
# Expert reads of a layer to search with. 4,500 estimate a layer's time to about 1%; 2,000 and a few rounds
# show which start is worth going on with. Time grows with reads x devices, so many devices get fewer reads.
_READS, _TRIAL_READS, _TRIAL_ROUNDS = 4500, 2000, 8
_MOST_READS_TIMES_DEVICES = 500_000
# Slower baselines than this need not be compared with the final plan.
_NEAR = 1.2
# So many placements are gone on with; what is slower than this has little hope to catch up.
_MOST_GONE_ON, _IN_REACH = 2, 1.15

# Of the finished placements the fastest so many get second holders: each takes about a second.
_MOST_SURVIVABLE = 3

Baseline = Callable[[PlanningProblem], HolderTable]

_BASELINES: tuple[Baseline, ...] = (
    fixed.one_box,
    fixed.uniform,
    fixed.whole_layers,
    fixed.hottest_first,
    fixed.hottest_per_layer,
    fixed.balanced_replicas,
    fixed.hottest_first_ties_spread,
)
# For few tokens, and too near `hottest_first` to be another place to begin.
_NO_START = fixed.hottest_first_ties_spread

Finish = Callable[[PlanningProblem, Sequence[LayerSample]], list[HolderTable]]
"""Final placements to choose from: for a problem whose statistics are of all the text, and steps of it."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A placement made from the first two thirds of the text, and how to go on with all of it.

    `held_out_s`: seconds of a step (`objective_s`) on the last third. `policy`: the baseline's own, None for
    a searched placement.
    """

    name: str
    table: HolderTable
    held_out_s: float
    finish: Finish
    policy: Baseline | None = None


def least_time(problem: PlanningProblem) -> HolderTable:
    """The placement of least expected time; without statistics all experts are taken as equally likely.

    The best of `candidates`, and the best one from another start, are searched further on all the text. If a
    baseline is faster there, it is the answer. No expert stays in slower memory while its box has room for it
    in faster (`fill_fast_memory`). Where experts should survive losses, each placement gets the holders that
    this takes before they are compared (`survivable`).
    """
    text = planning_text(problem)
    known = replace(problem, stats=text.stats)
    found = candidates(problem, text)
    best, *others = sorted(found, key=lambda candidate: candidate.held_out_s)
    layers = search_sample(known, text.trace, _READS)
    baseline = [c for c in others if c.policy and c.held_out_s <= _NEAR * best.held_out_s]
    searched = [c for c in others if not c.policy and c.held_out_s <= _IN_REACH * best.held_out_s]
    gone_on = [best, *searched[: _MOST_GONE_ON - 1], *baseline]
    # A copy on a disk is of no more use once a later round has put one in faster memory beside it.
    tables = [
        fill_fast_memory(known, table) for c in gone_on for table in (c.table, *c.finish(known, layers))
    ]
    check = spread_steps(text.trace, problem.workload.tokens_per_step, _MOST_CHECK_STEPS)
    if problem.survive:
        tables = sorted(tables, key=lambda table: objective_s(known, table, check))[:_MOST_SURVIVABLE]
        tables = [survivable(known, table, layers) for table in tables]
    fastest = min(tables, key=lambda table: objective_s(known, table, check))
    if problem.survive:
        return fastest
    moved = fill_fast_memory(known, move_beside_copies(known, fastest, layers))
    return fastest if moved is fastest else min((moved, fastest), key=lambda t: objective_s(known, t, check))


def candidates(problem: PlanningProblem, text: PlanningText) -> list[Candidate]:
    """Baselines, and placements searched from blocks and from the best baseline, with copies if these help.

    In all of them the fastest memory of a box is full before a slower one is used (`fill_fast_memory`).
    All see the first two thirds of `text`, the problem's own (`planning_text`), and are judged on the last.
    """
    stats, trace = text.stats, text.trace
    cut = len(trace) * 2 // 3
    fit, check = trace[:cut], spread_steps(trace[cut:], problem.workload.tokens_per_step, _MOST_CHECK_STEPS)
    fit_stats = stats_of(stats, fit)
    known = replace(problem, stats=fit_stats)

    def judge(name: str, table: HolderTable, finish: Finish, policy: Baseline | None = None) -> Candidate:
        return Candidate(name, table, objective_s(known, table, check), finish, policy)

    found = [
        judge(policy.__name__, table, _again(policy), policy) for policy, table in _baseline_tables(known)
    ]
    half = len(fit) // 2
    ranked = stats_of(stats, fit[:half]).counts.astype(np.int64)
    forms = [search_heat_blocks(known, ranked, fit[half:])[0]]
    if len(forms[0].groups) <= MOST_GROUPS_FOR_FINE:
        # With as few boundaries as this, all of the text teaches more than its own noise spoils.
        forms.append(search_heat_blocks(known, fit_stats.counts.astype(np.int64), fit)[0])
    starts: list[tuple[str, NDArray[np.integer]]]
    starts = [(form.name, form.holders(known)) for form in forms]
    begin = _fastest([c for c in found if c.table.table.shape[2] == 1 and c.policy is not _NO_START])
    starts.append((begin.name, begin.table.table[:, :, 0]))
    layers = search_sample(known, fit, _TRIAL_READS)
    # Where second holders are needed anyway, copies come after them.
    has_room = problem.capacities().sum() > problem.shape.num_routed_experts and not problem.survive
    searched = []
    for name, start in starts:
        refined = refine(known, start, layers, most_rounds=_TRIAL_ROUNDS)
        single = fill_fast_memory(known, HolderTable.from_single(refined))
        ways = [judge(f"searched from {name}", single, _Further(single))]
        if has_room:
            # The best without copies need not be the best to add them to, so all are tried.
            copied = add_copies(known, single, layers)
            ways.append(judge(f"searched from {name}, with copies", copied, _Further(single, copied=True)))
        searched.append(_fastest(ways))
    # Searched ones first: as fast as a baseline, they can still be gone on with.
    return [*searched, *found]


def _fastest(found: Sequence[Candidate]) -> Candidate:
    return min(found, key=lambda candidate: candidate.held_out_s)


@dataclass(frozen=True, slots=True, eq=False)
class _Further:
    """Searches on from `table`, which was made from part of the text."""

    table: HolderTable
    copied: bool = False

    def __call__(self, problem: PlanningProblem, layers: Sequence[LayerSample]) -> list[HolderTable]:
        found = [refine(problem, self.table.table[:, :, 0], layers)]
        if num_kicks(problem, layers):
            # The best single holders need not be the best ones to add copies to.
            found.append(kick(problem, found[0], layers))
        tables = [fill_fast_memory(problem, HolderTable.from_single(holders)) for holders in found]
        return [add_copies(problem, table, layers) for table in tables] if self.copied else tables


def _again(policy: Baseline) -> Finish:
    return lambda problem, _layers: [policy(problem)]


def search_sample(
    problem: PlanningProblem, trace: NDArray[np.integer], reads: int = _READS
) -> list[LayerSample]:
    """Steps of `trace` for the search; how often experts come is taken from the problem's statistics."""
    stats = fixed.require_stats(problem, "least-time")
    frequencies = expected_frequencies(stats)
    most = min(reads, _MOST_READS_TIMES_DEVICES // len(problem.devices))
    return sample_layers(trace, frequencies, problem.workload.tokens_per_step, most)


def _baseline_tables(problem: PlanningProblem) -> Iterator[tuple[Baseline, HolderTable]]:
    """Those whose rule leaves room."""
    for policy in _BASELINES:
        try:
            yield policy, fill_fast_memory(problem, policy(problem))
        except PlanDoesNotFit:
            continue
