"""The choice among an expert's holders: which worker computes it in this layer of this step.

One rule, twice: `assign_experts` for the dispatcher's one step, in plain Python, which is faster for few
experts; `assign_steps` for thousands of steps at once. They agree to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from placement.holders import NO_WORKER, LayerHolders

# Where nobody says what asking costs: as much as the work on so many experts.
_UNKNOWN_ASK_EXPERTS = 64.0

# Fewer steps than this are chosen for one by one, which is faster.
_FEW_STEPS = 16
# Steps at a time, so that what a round looks up stays in the processor's second-level cache.
_BLOCK_STEPS = 4096


@dataclass(frozen=True, eq=False)
class ReplicaCosts:
    """What the choice among replicas weighs; float64 [num_workers] each.

    Attributes:
        ask_s: seconds of a layer that a worker takes whatever the number of its experts: the round trip
            and one row on the wire; in the head's own process what keeps its device busy first.
        expert_s: seconds for each distinct expert.
    """

    ask_s: NDArray[np.float64]
    expert_s: NDArray[np.float64]

    @classmethod
    def unknown(cls, num_workers: int, local_worker: int | None) -> ReplicaCosts:
        """Equal workers, and a message that costs far more than an expert."""
        ask_s = np.full(num_workers, _UNKNOWN_ASK_EXPERTS)
        if local_worker is not None:
            ask_s[local_worker] = 0.0
        return cls(ask_s, np.ones(num_workers))

    @property
    def num_workers(self) -> int:
        return len(self.ask_s)

    @cached_property
    def lists(self) -> tuple[list[float], list[float]]:
        """As plain numbers: when a first expert would be done, and how long each takes."""
        return (self.ask_s + self.expert_s).tolist(), self.expert_s.tolist()

    def finish_s(self, most: int) -> NDArray[np.float64]:
        """When one expert more would be done: float64 [num_workers, most + 1], by experts there already.

        Added up one by one, as the choice for one step does, so that both round alike.
        """
        seconds = np.repeat(self.expert_s[:, None], most + 1, axis=1)
        seconds[:, 0] += self.ask_s
        added: NDArray[np.float64] = np.add.accumulate(seconds, axis=1)
        return added


def assign_experts(
    expert_ids: NDArray[np.integer], holders: LayerHolders, costs: ReplicaCosts
) -> NDArray[np.int16]:
    """Choose a worker for every chosen expert of one layer of one step.

    All rows that need an expert get the same worker, so that its weights are read once. An expert with
    one holder goes there. Then the replicated ones, those with fewest holders first, then by number, each
    to the holder that would be done with it first, then the lowest index (list scheduling; Graham, SIAM
    Journal on Applied Mathematics 17, 1969). The result depends on the arguments alone.

    Args:
        expert_ids: int [num_tokens, top_k], each in [0, num_experts), or -1 where nothing is to be computed.
        holders: this layer's row, `plan.holder_table.layers[row]`.
        costs: `plan.replica_costs`.

    Returns:
        int16 [num_tokens, top_k]: index into `plan.workers`, -1 for an expert that nobody holds,
        anything where `expert_ids` is -1. One table look-up where nothing is replicated.
    """
    chosen: NDArray[np.int16] = holders.single.take(expert_ids)
    if not holders.has_replicas or chosen.min(initial=0) >= 0:
        return chosen
    first_s, expert_s = costs.lists
    done_s = first_s.copy()
    workers = holders.workers
    several = []
    for expert in set(expert_ids.ravel().tolist()):
        held = workers[expert]
        if len(held) == 1:
            done_s[held[0]] += expert_s[held[0]]
        elif held:
            several.append(expert)
    several.sort(key=holders.rank_list.__getitem__)
    picks = []
    for expert in several:
        pick = min(workers[expert], key=done_s.__getitem__)
        done_s[pick] += expert_s[pick]
        picks.append(pick)
    choice = holders.single.copy()
    choice[several] = picks
    return choice.take(expert_ids)


def assign_steps(
    expert_ids: NDArray[np.integer], holders: LayerHolders, costs: ReplicaCosts
) -> NDArray[np.int16]:
    """`assign_experts` for many steps of one layer.

    Linear in the choices, in as many rounds as a step has choices.

    Args:
        expert_ids: int [num_steps, num_tokens, top_k].

    Returns:
        int16, of the shape of `expert_ids`.
    """
    chosen: NDArray[np.int16] = holders.single.take(expert_ids)
    if not holders.has_replicas:
        return chosen
    if len(expert_ids) < _FEW_STEPS:
        for step, ids in enumerate(expert_ids):
            chosen[step] = assign_experts(ids, holders, costs)
        return chosen
    for start in range(0, len(expert_ids), _BLOCK_STEPS):
        block = slice(start, start + _BLOCK_STEPS)
        _assign_block(expert_ids[None, block], [holders], costs, chosen[None, block])
    return chosen


def assign_layers(
    expert_ids: NDArray[np.integer], layers: Sequence[LayerHolders], costs: ReplicaCosts
) -> NDArray[np.int16]:
    """`assign_steps` for many layers, which costs little more than for one where steps are few.

    Args:
        expert_ids: int [num_layers, num_steps, num_tokens, top_k].
        layers: rows of one table.

    Returns:
        int16, of the shape of `expert_ids`.
    """
    num_steps = expert_ids.shape[1]
    if num_steps > _BLOCK_STEPS:
        each = [assign_steps(ids, holders, costs) for holders, ids in zip(layers, expert_ids, strict=True)]
        return np.stack(each)
    chosen = np.stack([holders.single.take(ids) for holders, ids in zip(layers, expert_ids, strict=True)])
    if any(holders.has_replicas for holders in layers):
        size = max(_BLOCK_STEPS // max(num_steps, 1), 1)
        for start in range(0, len(layers), size):
            block = slice(start, start + size)
            _assign_block(expert_ids[block], layers[block], costs, chosen[block])
    return chosen


def _assign_block(
    expert_ids: NDArray[np.integer],
    layers: Sequence[LayerHolders],
    costs: ReplicaCosts,
    chosen: NDArray[np.int16],
) -> None:
    """Fill in `chosen` [num_layers, num_steps, num_tokens, top_k], where it is `LayerHolders.single` so far.

    Every step of every layer is a row, every layer's ranks follow those of the layer before.
    """
    choices, num_workers = chosen.shape[2] * chosen.shape[3], costs.num_workers
    ranks = np.stack([holders.ranks for holders in layers])
    order, position = _in_order(expert_ids.reshape(*chosen.shape[:2], choices), ranks)
    num_rows = order.shape[1]
    repeats = np.zeros(order.shape, dtype=np.bool_)
    np.equal(order[1:], order[:-1], out=repeats[1:])

    # [max_holders, ranks]. Worker `num_workers` is one that would never be done: for experts with fewer
    # holders than others.
    candidates = np.full((layers[0].table.shape[1], *ranks.shape), num_workers)
    for layer, holders in enumerate(layers):
        held = np.where(holders.table == NO_WORKER, num_workers, holders.table)
        candidates[:, layer, ranks[layer, :-1]] = held.T
    candidates = candidates.reshape(len(candidates), -1)
    has_choice = candidates[1] != num_workers
    single = np.where(has_choice, num_workers, candidates[0]).take(order)
    single[repeats] = num_workers
    by_row = np.full((num_rows, num_workers + 1), np.inf)
    for worker, finish_s in enumerate(costs.finish_s(choices)):
        by_row[:, worker] = finish_s.take((single == worker).sum(axis=0))
    done_s = by_row.ravel()
    expert_s = np.append(costs.expert_s, np.inf)

    picked = np.full(num_rows, NO_WORKER, dtype=np.int16)
    flat = chosen.reshape(-1)
    to_choose = has_choice.take(order)
    for column in range(choices):
        rows = np.flatnonzero(to_choose[column])
        new = rows[~repeats[column, rows]]
        first = new * (num_workers + 1)
        experts = order[column, new]
        pick = first + candidates[0].take(experts)
        least_s = done_s.take(pick)
        for workers in candidates[1:]:
            cell = first + workers.take(experts)
            seconds = done_s.take(cell)
            pick = np.where(seconds < least_s, cell, pick)
            np.minimum(seconds, least_s, out=least_s)
        worker = pick - first
        done_s[pick] = least_s + expert_s.take(worker)
        picked[new] = worker
        flat[rows * choices + position[column, rows]] = picked[rows]


def _in_order(
    expert_ids: NDArray[np.integer], ranks: NDArray[np.unsignedinteger]
) -> tuple[NDArray[np.integer], NDArray[np.unsignedinteger]]:
    """Each row's experts in the order of the rule: ranks and where they stood, [choices, rows].

    Args:
        expert_ids: int [num_layers, num_steps, choices].
        ranks: [num_layers, num_experts + 1].
    """
    num_layers, num_steps, choices = expert_ids.shape
    # One number holds both, so that one sort does; 16 bits where they suffice, which numpy sorts faster.
    wide = np.uint16 if ranks.shape[1] * choices <= 2**16 else np.uint32
    scaled = np.multiply(ranks, choices, dtype=wide)
    keys = np.stack([each.take(ids) for each, ids in zip(scaled, expert_ids, strict=True)])
    keys += np.arange(choices, dtype=wide)
    keys.sort(axis=2)
    order, position = np.divmod(np.ascontiguousarray(keys.reshape(-1, choices).T), choices)
    if num_layers == 1:
        return order, position
    first_rank = np.repeat(np.arange(num_layers) * ranks.shape[1], num_steps)
    return order + first_rank, position
