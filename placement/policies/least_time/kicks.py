"""Iterated local search, for problems small enough to be searched many times.

A search by single moves ends where no move helps, though several at once might. So a few experts change
places by lot and the search goes on from there; what is better is kept (Lourenço, Martin and Stützle,
Handbook of Metaheuristics, 2003).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from placement.given.problem import PlanningProblem
from placement.policies.least_time.layer_search import LayerSample, layer_searches
from placement.policies.least_time.refine import refine_with

# A search takes about as long as (reads x devices); all of them together so long.
_WORK, _MOST_KICKS, _FEWEST_KICKS = 5_000_000, 80, 10
# After so many in a row that found nothing better, few of the rest would.
_FRUITLESS = 20
# Pairs of experts that change places, at most.
_MOST_PAIRS = 12
# Searches that end in many different places may each believe the sample more than a single one should.
_SHRINKAGE = 10.0


def num_kicks(problem: PlanningProblem, layers: Sequence[LayerSample]) -> int:
    """How many times a search of this size may be repeated, 0 where too few to be worth it."""
    work = len(problem.devices) * sum(len(layer.step) for layer in layers)
    kicks = min(_WORK // work, _MOST_KICKS)
    return kicks if kicks >= _FEWEST_KICKS else 0


def kick(
    problem: PlanningProblem, holders: NDArray[np.integer], layers: Sequence[LayerSample]
) -> NDArray[np.int64]:
    """The best of at most `num_kicks` searches, each from the best so far with some experts exchanged.

    Args:
        holders: int [num_layers, num_experts], where a search ended.
    """
    searches = layer_searches(problem, layers)
    believing = layer_searches(problem, layers, _SHRINKAGE)

    def seconds(table: NDArray[np.int64]) -> float:
        return sum(search.seconds(row) for search, row in zip(searches, table, strict=True))

    draws = np.random.default_rng(0)
    best = holders.astype(np.int64)
    best_s, fruitless = seconds(best), 0
    for number in range(num_kicks(problem, layers)):
        trial = best.copy()
        (_exchange_shares if number % 2 else _exchange_experts)(trial, draws)
        found = refine_with(believing, problem, trial)
        found_s = seconds(found)
        fruitless = fruitless + 1 if found_s >= best_s else 0
        if found_s < best_s:
            best, best_s = found, found_s
        if fruitless == _FRUITLESS:
            break
    return best


def _exchange_experts(holders: NDArray[np.int64], draws: np.random.Generator) -> None:
    """A few pairs of experts, of any layers, change places."""
    flat = holders.ravel()
    for one, other in draws.integers(0, flat.size, (draws.integers(1, _MOST_PAIRS + 1), 2)).tolist():
        flat[[one, other]] = flat[[other, one]]


def _exchange_shares(holders: NDArray[np.int64], draws: np.random.Generator) -> None:
    """One layer hands a device many experts, another takes as many back: some may want all at home."""
    rows = draws.permutation(len(holders))[:2]
    devices = draws.permutation(np.unique(holders[rows]))[:2]
    if len(rows) < 2 or len(devices) < 2:
        return
    one, other = devices
    there, back = np.flatnonzero(holders[rows[0]] == one), np.flatnonzero(holders[rows[1]] == other)
    most = min(len(there), len(back))
    if most == 0:
        return
    number = int(draws.integers(1, most + 1))
    holders[rows[0], draws.permutation(there)[:number]] = other
    holders[rows[1], draws.permutation(back)[:number]] = one
