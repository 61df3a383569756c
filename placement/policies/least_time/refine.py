"""Moves single experts between devices while the expected time falls."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from placement.given.problem import PlanningProblem
from placement.policies.least_time.exchanges import best_moves
from placement.policies.least_time.layer_search import SHRINKAGE, LayerSample, LayerSearch, layer_searches

# Moves a layer makes in one round before what they change is measured again; fewer where they clash.
_MOVES_A_ROUND = (16, 8, 4, 2, 1)
_MOST_ROUNDS = 30
# The work of a round grows with the square of the devices that it looks at together. A sweep of rounds looks
# at all of them.
_MOST_IN_A_PARTY = 16
_LEAST_SWEEPS = 3
# A round that gains less than this share of the time is one of fewer moves next time.
_LEAST_GAIN = 1e-3


def refine(
    problem: PlanningProblem,
    holders: NDArray[np.integer],
    layers: Sequence[LayerSample],
    most_moves: int | None = None,
    most_rounds: int = _MOST_ROUNDS,
    shrinkage: float = SHRINKAGE,
) -> NDArray[np.int64]:
    """Move experts while the time expected from the sample falls.

    Args:
        holders: int [num_layers, num_experts], one device for each expert, within capacity.
        layers: the sample, see `sample_layers`.
        most_moves: experts that may end elsewhere than they began; None for any number.
        shrinkage: see `layer_searches`.

    Returns:
        int64, the same shape.
    """
    return refine_with(layer_searches(problem, layers, shrinkage), problem, holders, most_moves, most_rounds)


def refine_with(
    searches: Sequence[LayerSearch],
    problem: PlanningProblem,
    holders: NDArray[np.integer],
    most_moves: int | None = None,
    most_rounds: int = _MOST_ROUNDS,
) -> NDArray[np.int64]:
    """`refine` with searches made before, for many holders one after another."""
    capacities = problem.capacities()
    current = holders.astype(np.int64)
    begin = current.copy()
    loads = [search.held(row) for search, row in zip(searches, current, strict=True)]
    seconds = np.array([s.seconds(row, held) for s, row, held in zip(searches, current, loads, strict=True)])
    gains: dict[int, NDArray[np.float64]] = {}
    sizes = list(_MOVES_A_ROUND)
    draws = np.random.default_rng(0)
    sweeps = max(-(-most_rounds // len(_parties(problem, draws))), _LEAST_SWEEPS)
    for _ in range(sweeps):
        before_s, refused, parties = seconds.sum(), 0, _parties(problem, draws)
        for devices in parties:
            room = (capacities - np.bincount(current.ravel(), minlength=len(capacities)))[devices]
            left = None if most_moves is None else most_moves - int((current != begin).sum())
            if len(parties) > 1:
                gains.clear()
            for row in range(len(searches)):
                if row not in gains:
                    gains[row] = searches[row].moves(current[row], devices, loads[row])
            column = np.full(len(capacities), -1)
            column[devices] = np.arange(len(devices))
            moves, _ = best_moves(
                np.stack([gains[row] for row in range(len(searches))]), column[current], room, sizes[0], left
            )
            trial, trial_loads, trial_seconds = current.copy(), loads.copy(), seconds.copy()
            for move in moves:
                trial[move.row, move.expert] = devices[move.target]
            moved = {move.row for move in moves}
            for row in moved:
                trial_loads[row] = searches[row].held(trial[row])
                trial_seconds[row] = searches[row].seconds(trial[row], trial_loads[row])
            if trial_seconds.sum() < seconds.sum():
                current, loads, seconds = trial, trial_loads, trial_seconds
                for row in moved:
                    del gains[row]
            else:
                refused += 1
        if before_s - seconds.sum() < _LEAST_GAIN * before_s or 2 * refused > len(parties):
            del sizes[0]
            if not sizes:
                break
    return current


def _parties(problem: PlanningProblem, draws: np.random.Generator) -> list[NDArray[np.intp]]:
    """Devices to search among at once: all, or many of them in parties drawn by lot, home in each."""
    is_home = np.array([device.is_home for device in problem.devices])
    if len(is_home) <= _MOST_IN_A_PARTY:
        return [np.arange(len(is_home))]
    home = np.flatnonzero(is_home)
    others = draws.permutation(np.flatnonzero(~is_home))
    parts = -(-len(others) // max(_MOST_IN_A_PARTY - len(home), 1))
    return [np.sort(np.concatenate([home, part])) for part in np.array_split(others, parts)]
