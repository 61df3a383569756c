"""Moves experts that have one holder once copies are in place, since copies change who has how much to do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from placement.given.problem import PlanningProblem
from placement.holders import HolderTable
from placement.policies.least_time.copies import CopySearch
from placement.policies.least_time.exchanges import best_moves
from placement.policies.least_time.layer_search import LayerSample

# Moves a layer makes in one round, fewer once so many gain too little: after a move the dispatcher chooses
# otherwise among the copies, which a move's gain by itself does not know.
_MOVES_A_ROUND = (16, 8, 4, 2, 1)
# A round's work grows with the devices.
_MOST_ROUNDS, _MOST_ROUNDS_TIMES_DEVICES = 10, 640
_LEAST_GAIN = 1e-4


def move_beside_copies(
    problem: PlanningProblem, table: HolderTable, layers: Sequence[LayerSample]
) -> HolderTable:
    """`table` with experts of a single holder moved while the time expected from the sample falls.

    Copies stay, and the dispatcher's own rule chooses among them. A table without copies stays as it is.

    Args:
        layers: a sample of steps, see `sample_layers`.
    """
    masks = table.masks(len(problem.devices))
    single = masks.sum(axis=0) == 1
    if single.all():
        return table
    search = CopySearch(problem, layers)
    state = search.assign(masks)
    capacities = problem.capacities()
    sizes = list(_MOVES_A_ROUND)
    for _ in range(min(_MOST_ROUNDS, _MOST_ROUNDS_TIMES_DEVICES // len(capacities))):
        room = capacities - masks.sum(axis=(1, 2))
        movable = np.where(single, state.first, -1)
        moves, _ = best_moves(search.moves(state), movable, room, sizes[0])
        trial = masks.copy()
        for move in moves:
            trial[move.source, move.row, move.expert] = False
            trial[move.target, move.row, move.expert] = True
        trial_state = search.assign(trial)
        gain_s = state.seconds - trial_state.seconds
        if gain_s > 0:
            masks, state = trial, trial_state
        if gain_s < _LEAST_GAIN * state.seconds:
            del sizes[0]
            if not sizes:
                break
    return HolderTable.from_masks(masks)
