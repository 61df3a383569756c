"""The choice among an expert's holders: which worker computes it in this layer of this step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placement.holders import LayerHolders

# Where nobody says what asking costs: as much as the work on so many experts.
_UNKNOWN_ASK_EXPERTS = 64.0


@dataclass(frozen=True, slots=True, eq=False)
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


def assign_experts(
    expert_ids: NDArray[np.integer], holders: LayerHolders, local_worker: int | None = None
) -> NDArray[np.int16]:
    """Choose a worker for every chosen expert of one layer.

    All rows that need an expert get the same worker, so that its weights are read once. An expert with
    one holder goes there. A replicated one goes to `local_worker` if that holds it (no message); else to
    a holder that must be asked anyway, because some expert of this layer has no other holder (no
    further message); among those, to the one with fewest distinct experts so far, then the lowest index.
    The result depends on the arguments alone.

    Args:
        expert_ids: int [num_tokens, top_k], each in [0, num_experts), or -1 where nothing is to be computed.
        holders: this layer's row, `plan.holder_table.layers[row]`.
        local_worker: index of the caller's own worker, None if it holds no experts.

    Returns:
        int16 [num_tokens, top_k]: index into `plan.workers`, -1 for an expert that nobody holds,
        anything where `expert_ids` is -1. One table look-up where nothing is replicated.
    """
    workers = holders.single.take(expert_ids)
    if holders.replicas and workers.min(initial=0) < 0:
        chosen = _assign_replicated(expert_ids, holders, local_worker)
        workers = chosen.take(expert_ids)
    return workers


def _assign_replicated(
    expert_ids: NDArray[np.integer], holders: LayerHolders, local_worker: int | None
) -> NDArray[np.int16]:
    """int16 [num_experts]: `holders.single`, with the touched replicated experts filled in."""
    touched = np.zeros(len(holders.single), dtype=np.bool_)
    touched[expert_ids[expert_ids >= 0]] = True
    distinct = np.flatnonzero(touched)

    choice = holders.single.copy()
    single = choice[distinct]
    load = dict(zip(*(a.tolist() for a in np.unique(single[single >= 0], return_counts=True)), strict=True))
    must_ask = set(load)
    for expert in distinct[single < 0].tolist():
        candidates = holders.replicas.get(expert)
        if candidates is None:  # lost with its only holder
            continue
        if local_worker in candidates:
            worker = local_worker
        else:
            asked_anyway = [w for w in candidates if w in must_ask]
            worker = min(asked_anyway or candidates, key=lambda w: (load.get(w, 0), w))
        load[worker] = load.get(worker, 0) + 1
        choice[expert] = worker
    return choice
