"""Whether VRAM should hold fixed experts or be a cache, on one recorded text."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from placement.errors import InputError
from placement.given.problem import PlanningProblem
from placement.given.stats import RoutingStats
from placement.policies.vram_residency import ResidencyResult, choose_residency, simulate_residency
from placement.residency import ResidencyRule


@dataclass(frozen=True, slots=True, eq=False)
class VramCache:
    """The rules side by side.

    Attributes:
        results: of each rule, fixed experts first.
        chosen: what `choose_residency` takes.
    """

    results: tuple[ResidencyResult, ...]
    chosen: ResidencyRule


def vram_cache(problem: PlanningProblem, trace: NDArray[np.integer]) -> VramCache:
    """Run the second half of a text by each rule; the first half says which experts are hot.

    A rule that is judged by the text it was counted on looks better than it is, fixed experts most of all.

    Args:
        trace: int [num_tokens, num_moe_layers, top_k], in the order of the text.

    Raises:
        PlanDoesNotFit: as `simulate_residency`.
        InputError: each half needs a step of text.
    """
    tokens = problem.workload.tokens_per_step
    if len(trace) < 2 * tokens:
        raise InputError(
            f"VRAM as a cache: expected a text of {2 * tokens} tokens or more, a step in each half, found "
            f"{len(trace)}"
        )
    middle = len(trace) // 2
    stats = RoutingStats.from_trace(problem.shape, trace[:middle], "the first half of the text")
    results = simulate_residency(replace(problem, stats=stats), trace[middle:])
    return VramCache(results, choose_residency(results))
