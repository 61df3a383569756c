"""A box at home and a second one on the network: tokens/s of whole steps by kind of plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from benchmarks.studies.device_figures import drive, head_card, memory
from benchmarks.studies.pay_map import FAMILIES, family_of, text
from benchmarks.studies.whole_steps import (
    CONTEXTS,
    EXPERT_BYTES,
    PLANNED_DEPTHS,
    Best,
    best_depth,
    head_step_seconds,
    moe_seconds,
    pipeline_seconds,
    problem_of,
    shortest,
    together,
    with_drafts,
)
from placement.answers.study.routing_source import Routing
from placement.given.cluster_spec import ClusterSpec, DeviceSpec, LinkSpec, NodeSpec
from placement.hardware.spread import packaged_spreads
from placement.holders import HolderTable
from placement.model_shape import STEP_3_5_FLASH as SHAPE
from placement.policies.registry import POLICIES

DOCUMENTS = 16
SIMPLE = ("one-box", "whole-layers", "uniform", "hottest-first")
SPARE_SHARE = 0.15
UNSURE = packaged_spreads().same_boxes.margin
"""As much as the ratio of two plans' speeds may be off: a smaller difference is none that can be promised."""
NO_DIFFERENCE = "no difference to promise"

Row = Mapping[str, Any]
"""Of a study's table, with the tokens/s of each kind of plan."""


@dataclass(frozen=True, slots=True)
class Home:
    """What somebody has.

    Attributes:
        gbytes_per_s: of the memory of both boxes.
        share: of the experts that fits the first one's memory; below 1 it has an SSD with all of them.
        link: to the second box, which has room for what is missing and a little more, or, where nothing is
            missing, for everything. None where there is no second box.
        has_card: the head is on a GPU of its own, without experts; else in the box's memory.
    """

    gbytes_per_s: float
    share: float
    link: LinkSpec | None
    has_card: bool

    def cluster(self) -> ClusterSpec:
        """Both boxes; the second one comes last."""
        at_home: list[DeviceSpec] = [head_card()] if self.has_card else []
        at_home.append(self._memory(self.share))
        if self.share < 1:
            at_home.append(drive(SHAPE.num_routed_experts * EXPERT_BYTES))
        nodes = [NodeSpec("home", None, tuple(at_home), None)]
        if self.link is not None:
            room = 1.0 if self.share == 1 else min(1.0, 1 + SPARE_SHARE - self.share)
            nodes.append(NodeSpec("attic", None, (self._memory(room),), self.link))
        return ClusterSpec("home", tuple(nodes))

    def _memory(self, share: float) -> DeviceSpec:
        return memory(self.gbytes_per_s, int(share * SHAPE.num_routed_experts) * EXPERT_BYTES)


@dataclass(frozen=True, slots=True)
class Speeds:
    """Of each kind of plan.

    Attributes:
        moe_ms: MoE layers alone of a step without drafts.
        whole: of whole steps at each context, with the best number of drafts.
    """

    moe_ms: Mapping[str, float]
    whole: Mapping[int, Mapping[str, Best]]


def speeds(home: Home) -> Speeds:
    """The fastest plan of each kind for a home, judged on text that none was made from.

    'Whole layers' are the second box's experts of whole layers, or layers with attention and all, one box
    after another.
    """
    routing = _text()
    problem = problem_of(home.cluster(), routing.planned)
    in_memory = int(home.has_card)
    tables = [POLICIES[name](problem) for name in (SIMPLE if home.link else SIMPLE[:1])]
    if home.link is not None:
        tables += [POLICIES["least-time"](with_drafts(problem, drafts)) for drafts in PLANNED_DEPTHS]
    by_family: dict[str, list[tuple[float, ...]]] = {family: [] for family in FAMILIES}

    def family(table: HolderTable) -> str:
        return "one box" if home.link is None else family_of(table, in_memory, len(problem.devices) - 1)

    for table in tables:
        by_family[family(table)].append(moe_seconds(problem, table, routing.held_out))
    moe_s = {name: shortest(times) for name, times in by_family.items()}
    whole = {}
    for context in CONTEXTS:
        head_s = head_step_seconds(problem, context)
        step_s = {name: together(times, head_s) for name, times in moe_s.items()}
        if home.link is not None:
            in_turn = pipeline_seconds(problem, routing.held_out, context)
            step_s["whole layers"] = shortest([step_s["whole layers"], in_turn])
        whole[context] = {name: best_depth(times) for name, times in step_s.items()}
    return Speeds({name: 1e3 * times[0] for name, times in moe_s.items()}, whole)


def gain(row: Row) -> float:
    """How many times as fast pooled experts are as the best of whole layers and one box."""
    without = max(float(row["one box tokens/s"]), float(row["whole layers tokens/s"]))
    return float(row["experts tokens/s"]) / without


def verdict(times: float) -> str:
    """Whether pooling experts pays, where the ratio of two speeds may be off by `UNSURE`."""
    if times >= 1 + UNSURE:
        return "yes"
    return "no" if times * (1 + UNSURE) <= 1 else NO_DIFFERENCE


@cache
def _text() -> Routing:
    return text(DOCUMENTS)
