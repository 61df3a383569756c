"""The placement policies by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Protocol

from placement.errors import InputError
from placement.files.quote import quote
from placement.given.problem import PlanningProblem
from placement.holders import HolderTable
from placement.policies.baselines import cached_experts, fixed
from placement.policies.baselines.pipeline import pipeline
from placement.policies.baselines.prompt_hottest import prompt_hottest
from placement.policies.least_time.policy import least_time, search_sample
from placement.policies.least_time.second_holders import second_holders
from placement.policies.vram_residency import background_lfu, background_lru
from placement.replay.evaluate import Evaluation
from placement.routing.planning_text import planning_text
from placement.routing.text import Text


class Policy(Protocol):
    """Places every expert at least once, within every device's capacity; same problem, same answer.

    Raises InputError where it needs statistics that the problem lacks, PlanDoesNotFit where its own rule
    leaves no room.
    """

    def __call__(self, problem: PlanningProblem, /) -> HolderTable: ...


BASELINES: Mapping[str, Policy] = MappingProxyType(
    {
        "one-box": fixed.one_box,
        "uniform": fixed.uniform,
        "random": fixed.random,
        "whole-layers": fixed.whole_layers,
        "hottest-first": fixed.hottest_first,
        "hottest-per-layer": fixed.hottest_per_layer,
        "balanced-replicas": fixed.balanced_replicas,
    }
)


class RunPolicy(Protocol):
    """A policy that no table of holders describes, since it moves experts as it goes, or more than experts.

    It is run on text and says how long that took. Raises as a `Policy` does, and InputError where the
    text is too short.
    """

    def __call__(self, problem: PlanningProblem, text: Text, /) -> Evaluation: ...


RUN_POLICIES: Mapping[str, RunPolicy] = MappingProxyType(
    {
        "pipeline": pipeline,
        "prompt-hottest": prompt_hottest,
        "lru": cached_experts.lru,
        "lfu": cached_experts.lfu,
        "opt": cached_experts.opt,
        "background-lru": background_lru,
        "background-lfu": background_lfu,
    }
)

LEAST_TIME = "least-time"
POLICIES: Mapping[str, Policy] = MappingProxyType({**BASELINES, LEAST_TIME: least_time})


def find_policy(name: str) -> Policy:
    """Raises InputError for a name that makes no plan, listing those that do."""
    if name in RUN_POLICIES:
        raise InputError(
            f"policy {quote(name)} makes no plan, it is run on text: use it in a study, or expect one of "
            f"{', '.join(POLICIES)}"
        )
    if name not in POLICIES:
        raise InputError(f"policy {quote(name)}: expected {', '.join(POLICIES)}")
    return POLICIES[name]


def place(problem: PlanningProblem, name: str) -> HolderTable:
    """A policy's placement; where experts should survive losses, with the second holders that this takes.

    Raises as `find_policy` and the policy itself.
    """
    table = find_policy(name)(problem)
    if not problem.survive or name == LEAST_TIME:
        return table
    text = planning_text(problem)
    known = replace(problem, stats=text.stats)
    return second_holders(known, table, search_sample(known, text.trace))


def check_policy(name: str) -> None:
    """Raises InputError for a name that is neither in POLICIES nor in RUN_POLICIES."""
    if name not in POLICIES and name not in RUN_POLICIES:
        raise InputError(f"policy {quote(name)}: expected {', '.join((*POLICIES, *RUN_POLICIES))}")
