"""How fast the model should run on boxes of the catalogue, with the best head and number of drafts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from benchmarks.studies.device_figures import ACCEPTANCE
from benchmarks.studies.whole_steps import CONTEXTS
from placement.answers.head_choice import choose_head
from placement.answers.planner import DEFAULT_POLICY
from placement.answers.prediction_range import LikelySpeed, range_for
from placement.answers.study.measure import measure_table
from placement.answers.study.routing_source import Routing, SyntheticSource
from placement.cost.head import head_seconds
from placement.errors import PlanDoesNotFit
from placement.given.cluster_spec import ClusterSpec
from placement.given.other_head import HeadPlace, head_place
from placement.given.problem import PlanningProblem, problem_for
from placement.given.traces import GENERAL
from placement.hardware.spread import packaged_spreads
from placement.holders import HolderTable
from placement.model_shape import STEP_3_5_FLASH as SHAPE
from placement.policies.registry import find_policy
from placement.replay.steps import Acceptance
from placement.weight_format import planned_format
from placement.workload import Workload, usual_workload

QUANT = "q4"
_EXPERT_BYTES = SHAPE.expert_bytes(planned_format(QUANT).bits)
_TOKENS = 3072
# Plans are made without drafts, and for so many: that serves any number of drafts to within 1%.
_PLANNED_DRAFTS = 2


@dataclass(frozen=True, slots=True)
class Speed:
    """Of whole steps at one context.

    `remote_layers`: MoE layers that ask another box, for each token.
    """

    likely: LikelySpeed
    drafts: int
    remote_layers: float

    @property
    def tokens_per_s(self) -> float:
        return self.likely.tokens_per_s

    def beats(self, other: Speed) -> bool:
        """Whether it is faster by more than the range."""
        return self.likely.beats(other.likely)


@dataclass(frozen=True, slots=True)
class Speeds:
    """One of each of `CONTEXTS`, None where something has no room; then `note` says what.

    `head`: where it computes, if that is not where the file has it.
    """

    by_context: tuple[Speed | None, ...]
    note: str = ""
    head: HeadPlace | None = None


def speeds_on(cluster: ClusterSpec, *, keep_head: bool) -> Speeds:
    """Choose the head, plan without drafts and with some, and take the number of drafts that is fastest.

    Args:
        keep_head: leave the head where the file has it.
    """
    seen = cluster if keep_head else _with_best_head(cluster)
    head = head_place(seen)
    found: list[list[Speed]] = [[] for _ in CONTEXTS]
    note = ""
    for depths in ((0,), tuple(range(1, len(ACCEPTANCE) + 1))):
        try:
            problem, contexts = _problem_for_most(seen, depths[-1])
        except PlanDoesNotFit as error:
            note = note or str(error)
            continue
        table = _table(problem, min(_PLANNED_DRAFTS, depths[-1]))
        for drafts in depths:
            for index, speed in enumerate(_judged(problem, table, drafts, contexts)):
                found[index].append(speed)
    best = tuple(max(speeds, key=lambda speed: speed.tokens_per_s, default=None) for speeds in found)
    return Speeds(best, note if None in best else "", None if head == head_place(cluster) else head)


def workload(drafts: int, context: int) -> Workload:
    """What the commands take where nobody says, with so many drafts."""
    chances = ACCEPTANCE[:drafts]
    return replace(
        usual_workload(QUANT),
        drafts=drafts,
        accepted_drafts=Acceptance(chances).mean_accepted,
        acceptance=chances,
        context=context,
    )


def _with_best_head(cluster: ClusterSpec) -> ClusterSpec:
    """The boxes as another head sees them, if that is faster without drafts by a gain that can be promised.

    In a single box the device that the file names first is the one.
    """
    if len(cluster.nodes) == 1:
        return cluster
    try:
        choice = choose_head(
            cluster,
            lambda seen: _problem(seen, workload(0, CONTEXTS[0])),
            DEFAULT_POLICY,
            packaged_spreads(),
        )
    except PlanDoesNotFit:
        return cluster
    return cluster if choice.is_promised(choice.best) is False else choice.best.cluster


def _problem_for_most(cluster: ClusterSpec, drafts: int) -> tuple[PlanningProblem, Sequence[int]]:
    """The problem at the longest context that has room, and all contexts that have.

    Raises PlanDoesNotFit where the shortest has none.
    """
    for number in range(len(CONTEXTS), 1, -1):
        try:
            return _problem(cluster, workload(drafts, CONTEXTS[number - 1])), CONTEXTS[:number]
        except PlanDoesNotFit:
            continue
    return _problem(cluster, workload(drafts, CONTEXTS[0])), CONTEXTS[:1]


def _problem(cluster: ClusterSpec, of: Workload) -> PlanningProblem:
    return problem_for(SHAPE, cluster, _EXPERT_BYTES, _routing().planned, of, expert_form=QUANT)


def _table(problem: PlanningProblem, drafts: int) -> HolderTable:
    """A plan in as much room as `problem` has, for passes of so many drafts."""
    planned = replace(problem, workload=workload(drafts, problem.workload.context))
    return find_policy(DEFAULT_POLICY)(planned)


def _judged(
    problem: PlanningProblem, table: HolderTable, drafts: int, contexts: Sequence[int]
) -> list[Speed]:
    """On held-out text, at each context; that changes the head's part alone."""
    of = workload(drafts, contexts[0])
    measured = measure_table(replace(problem, workload=of), table, _routing())
    within = range_for(problem, table, packaged_spreads())
    found = []
    for context in contexts:
        head_s = head_seconds(replace(problem, workload=workload(drafts, context))).total_s
        tokens_per_s = of.tokens_out_per_step / (measured.moe_s + head_s)
        likely = LikelySpeed(tokens_per_s, within)
        found.append(Speed(likely, drafts, measured.remote_layers_per_token))
    return found


@cache
def _routing() -> Routing:
    """The text of `potluck whatif`."""
    return SyntheticSource("general", GENERAL, GENERAL, _TOKENS, 0).load(SHAPE)
