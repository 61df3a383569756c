"""The choice among an expert's holders: which worker computes it in this layer of this step.

The dispatcher's form: plain Python, which is faster for few experts. `many_steps` has the same rule for
thousands of steps at once; a property test holds the two together to the last bit.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from placement.holders import LayerHolders

# Where nobody says what asking costs: as much as the work on so many experts.
_UNKNOWN_ASK_EXPERTS = 64.0
# And for an expert that is read from a disk first: more than to ask somebody who has it in memory.
_UNKNOWN_READ_EXPERTS = 128.0


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
    def unknown(
        cls, num_workers: int, local_workers: Collection[int] = (), disks: Collection[int] = ()
    ) -> ReplicaCosts:
        """Equal workers but for `disks`, and a message that costs far more than an expert in memory."""
        ask_s = np.full(num_workers, _UNKNOWN_ASK_EXPERTS)
        ask_s[list(local_workers)] = 0.0
        expert_s = np.ones(num_workers)
        expert_s[list(disks)] = _UNKNOWN_READ_EXPERTS
        return cls(ask_s, expert_s)

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
        int16 [num_tokens, top_k]: index into `plan.tiers`, -1 for an expert that nobody holds,
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
