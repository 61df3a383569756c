"""Holders that losses ask for, where they also serve speed; what memory is left becomes copies for speed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from placement.given.problem import PlanningProblem
from placement.holders import HolderTable
from placement.policies.cover import Cover
from placement.policies.least_time.copies import CopySearch, add_copies, without_copies
from placement.policies.least_time.layer_search import LayerSample

# Holders are added in so many rounds, since each changes what the next one is worth.
_ROUNDS = 6


def survivable(problem: PlanningProblem, table: HolderTable, layers: Sequence[LayerSample]) -> HolderTable:
    """`table` with second holders in place of its copies, and copies for speed in the room that is left.

    Args:
        layers: a sample of steps, see `sample_layers`.
    """
    return add_copies(problem, second_holders(problem, without_copies(problem, table), layers), layers)


def second_holders(
    problem: PlanningProblem, table: HolderTable, layers: Sequence[LayerSample]
) -> HolderTable:
    """`table` with as many more holders as surviving `problem.survive` losses takes, or as have room.

    A holder goes where it saves most time, or costs least. Experts move only where a holder would find no
    place otherwise.
    """
    cover = Cover(problem, table.masks(len(problem.devices)))
    if not cover.short.any():
        return table
    search = CopySearch(problem, layers)
    size = -(-int(cover.short.sum()) // _ROUNDS)
    for _ in range(_ROUNDS + problem.survive):
        allowed = cover.allowed()
        if not allowed.any():
            break
        changes = search.changes(search.assign(cover.masks)).transpose(2, 0, 1)
        changes = np.where(allowed, changes, np.inf)
        place = changes.argmin(axis=0)
        best = np.take_along_axis(changes, place[None], axis=0)[0]
        added = 0
        for cell in np.argsort(best, axis=None, kind="stable").tolist():
            layer, expert = divmod(cell, best.shape[1])
            if added == size or not np.isfinite(best[layer, expert]):
                break
            device = int(place[layer, expert])
            if cover.room[device] > 0:
                cover.add(device, layer, expert)
                added += 1
    cover.complete(np.stack([layer.frequencies for layer in layers]))
    return HolderTable.from_masks(cover.masks)
