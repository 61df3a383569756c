"""The placement policies by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

from placement import baselines
from placement.errors import InputError
from placement.holders import HolderTable
from placement.least_time import least_time
from placement.problem import PlanningProblem


class Policy(Protocol):
    """Places every expert at least once, within every device's capacity; same problem, same answer.

    Raises InputError where it needs statistics that the problem lacks, PlanDoesNotFit where its own rule
    leaves no room.
    """

    def __call__(self, problem: PlanningProblem, /) -> HolderTable: ...


BASELINES: Mapping[str, Policy] = MappingProxyType(
    {
        "one-box": baselines.one_box,
        "uniform": baselines.uniform,
        "random": baselines.random,
        "whole-layers": baselines.whole_layers,
        "hottest-first": baselines.hottest_first,
        "hottest-per-layer": baselines.hottest_per_layer,
        "balanced-replicas": baselines.balanced_replicas,
    }
)

POLICIES: Mapping[str, Policy] = MappingProxyType({**BASELINES, "least-time": least_time})


def named_policy(name: str) -> Policy:
    """Raises InputError for an unknown name, listing the known ones."""
    try:
        return POLICIES[name]
    except KeyError:
        raise InputError(f"policy {name!r}: expected {', '.join(POLICIES)}") from None
