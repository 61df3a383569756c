"""Spare room becomes copies of experts, where a choice among holders saves most time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placement.assign.many_steps import assign_layers
from placement.cost.replica_costs import replica_costs
from placement.given.problem import PlanningProblem
from placement.holders import NO_WORKER, HolderTable
from placement.policies.baselines.fixed import by_speed
from placement.policies.least_time.layer_search import LayerSample, Loads, layer_searches
from placement.policies.least_time.tiers import faster_beside, useless_on_disk

# Room is filled in so many rounds, since a copy changes what the next one is worth; in smaller ones where the
# dispatcher makes less of many copies than of few.
_ROUNDS, _MOST_ROUNDS = 4, 7
# A copy that saves less of the time than this is not worth loading.
_LEAST_SHARE = 1e-6


def add_copies(
    problem: PlanningProblem,
    table: HolderTable,
    layers: Sequence[LayerSample],
    most_copies: int | None = None,
) -> HolderTable:
    """`table` with copies in the room it leaves, none where none helps.

    Args:
        layers: a sample of steps, see `sample_layers`.
        most_copies: at most so many; None for as many as there is room for.
    """
    search = CopySearch(problem, layers)
    masks = table.masks(len(problem.devices))
    free = problem.capacities() - masks.sum(axis=(1, 2))
    left = int(free.sum()) if most_copies is None else most_copies
    if left <= 0 or free.max() <= 0:
        return table
    state = search.assign(masks)
    size = -(-left // _ROUNDS)
    for _ in range(_MOST_ROUNDS):
        added = search.best_copies(state, free, min(size, left))
        if not len(added[0]):
            break
        trial = masks.copy()
        trial[added] = True
        trial_state = search.assign(trial)
        if trial_state.seconds < state.seconds:
            masks, state = trial, trial_state
            free -= np.bincount(added[0], minlength=len(free))
            left -= len(added[0])
        elif size == 1:
            break
        else:
            size = max(size // 4, 1)
    return HolderTable.from_masks(masks)


def without_copies(problem: PlanningProblem, table: HolderTable) -> HolderTable:
    """Each expert only where it is computed soonest: at home before other boxes, on a disk last."""
    rank = np.empty(len(problem.devices) + 1, dtype=np.int64)
    rank[by_speed(problem)] = np.arange(len(problem.devices))
    rank[NO_WORKER] = len(problem.devices)
    first = rank[table.table].argmin(axis=2)
    return HolderTable.from_single(np.take_along_axis(table.table, first[:, :, None], axis=2)[:, :, 0])


_Cells = tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]
"""Indices (device, layer row, expert)."""


@dataclass(frozen=True, slots=True, eq=False)
class Assigned:
    """A set of holders, bool [num_devices, num_layers, num_experts], and what the dispatcher makes of it.

    `loads`: for each layer what devices have to do. `first`: a holder of every expert, [num_layers,
    num_experts]. `seconds`: expected of all layers, prompts included.
    """

    masks: NDArray[np.bool_]
    loads: list[Loads]
    first: NDArray[np.intp]
    seconds: float


class CopySearch:
    """What copies are worth on a sample of steps."""

    def __init__(self, problem: PlanningProblem, layers: Sequence[LayerSample]) -> None:
        self._problem = problem
        self._faster = faster_beside(problem)
        self._searches = layer_searches(problem, layers)
        self._costs = replica_costs(problem)
        self._chosen = np.stack([layer.chosen for layer in layers])
        # A choice for each read: all of a step that name the same expert go to the same device.
        self._choices = [_choice_of_read(layer) for layer in layers]

    def assign(self, masks: NDArray[np.bool_]) -> Assigned:
        table = HolderTable.from_masks(masks)
        first = table.table[:, :, 0].astype(np.intp)
        chosen = assign_layers(self._chosen, table.layers, self._costs)
        loads = [
            search.loads(devices.take(choices))
            for search, devices, choices in zip(self._searches, chosen, self._choices, strict=True)
        ]
        seconds = sum(
            search.held_seconds(of_layer, masks[:, row])
            for row, (search, of_layer) in enumerate(zip(self._searches, loads, strict=True))
        )
        return Assigned(masks, loads, first, seconds)

    def changes(self, state: Assigned) -> NDArray[np.float64]:
        """What one more copy changes of `state.seconds`: [num_layers, num_experts, num_devices]."""
        return np.stack(
            [
                search.copies(loads, first, state.masks[:, row])
                for row, (search, loads, first) in enumerate(
                    zip(self._searches, state.loads, state.first, strict=True)
                )
            ]
        )

    def moves(self, state: Assigned) -> NDArray[np.float64]:
        """What moving one expert changes of `state.seconds`: [num_layers, num_experts, num_devices].

        For experts with one holder; of others it says nothing.
        """
        devices = np.arange(len(self._problem.devices))
        return np.stack(
            [
                search.moves(first, devices, loads)
                for search, loads, first in zip(self._searches, state.loads, state.first, strict=True)
            ]
        )

    def best_copies(self, state: Assigned, room: NDArray[np.int64], most: int) -> _Cells:
        """At most one new copy an expert, the most useful ones, where there is room."""
        gains = self.changes(state)
        useless = useless_on_disk(self._problem, self._faster, state.masks)
        gains[(state.masks | useless).transpose(1, 2, 0)] = 0.0
        flat = gains.reshape(-1, len(room))
        flat[:, room <= 0] = 0.0
        # Of an expert only its best place counts in this round.
        place = flat.argmin(axis=1)
        best = np.take_along_axis(flat, place[:, None], axis=1)[:, 0]
        order = np.argsort(best, kind="stable")[: int((best < -_LEAST_SHARE * state.seconds).sum())]
        cells = np.concatenate([order[place[order] == device][:free] for device, free in enumerate(room)])
        cells = cells[np.argsort(best[cells], kind="stable")][:most]
        layer, expert = np.divmod(cells, gains.shape[1])
        return place[cells], layer, expert


def _choice_of_read(layer: LayerSample) -> NDArray[np.intp]:
    """For each read the place of a choice of its expert in `layer.chosen`, int [num_reads]."""
    chosen = layer.chosen.reshape(layer.num_steps, -1).astype(np.intp)
    places = np.zeros((layer.num_steps, len(layer.seen)), dtype=np.intp)
    np.put_along_axis(places, chosen, np.arange(chosen.size).reshape(chosen.shape), axis=1)
    of_read: NDArray[np.intp] = places[layer.step, layer.expert]
    return of_read
