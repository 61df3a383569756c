"""Which experts lie in which slot of a cache, and which make room: frequency and recency in one number.

LRFU (Lee et al., IEEE Transactions on Computers 50, 2001): an expert is worth the sum over its uses of
2^(-age / half_life). A short half-life gives LRU, a long one LFU. All values shrink alike as time passes, so
they are kept relative to time 0, as logarithms, and compared as they are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FREE = -1


class ExpertCache:
    """Slots and what is in them. Time is counted in calls of `use`.

    Uses are counted of all experts, held or not. What is pinned never makes room.
    """

    def __init__(self, num_experts: int, num_slots: int, half_life: float) -> None:
        """
        Args:
            num_experts: they are numbered below this.
            half_life: in calls of `use`, above 0.
        """
        self.slot_of = np.full(num_experts, FREE, np.int64)
        self.expert_in = np.full(num_slots, FREE, np.int64)
        self._worth = np.full(num_experts, -np.inf)
        self._pinned = np.zeros(num_slots, np.bool_)
        self._half_life = half_life
        self._now = 0

    def use(self, experts: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Count one use of each of these distinct experts and pin those that are here.

        Returns:
            bool, for each: whether it is here.
        """
        self._worth[experts] = np.logaddexp2(self._worth[experts], self._now / self._half_life)
        self._now += 1
        slots = self.slot_of[experts]
        here: NDArray[np.bool_] = slots != FREE
        self._pinned[slots[here]] = True
        return here

    def take(self, experts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Give slots to the first of these experts, as many as can have one, and pin them.

        None of them is here yet. Free slots go first, then those of the least worth, equals by slot.

        Returns:
            Their slots, at most one for each expert.
        """
        worth = np.where(self.expert_in == FREE, -np.inf, self._worth[self.expert_in])
        candidates = np.flatnonzero(~self._pinned)
        count = min(len(candidates), len(experts))
        if count == 0:
            return candidates[:0]
        worth = worth[candidates]
        # The least `count` without sorting all: those below the count-th, then as many equal to it as needed.
        limit = np.partition(worth, count - 1)[count - 1]
        below = candidates[worth < limit]
        equal = candidates[worth == limit]
        slots = np.concatenate([below, equal[: count - len(below)]])
        gone = self.expert_in[slots]
        self.slot_of[gone[gone != FREE]] = FREE
        self.expert_in[slots] = experts[:count]
        self.slot_of[experts[:count]] = slots
        self._pinned[slots] = True
        return slots

    def unpin(self, experts: NDArray[np.int64]) -> None:
        """They are computed: their slots may make room."""
        self._pinned[self.slot_of[experts]] = False

    def drop(self, experts: NDArray[np.int64]) -> None:
        """Free the slots of experts whose bytes did not arrive."""
        slots = self.slot_of[experts]
        self._pinned[slots] = False
        self.expert_in[slots] = FREE
        self.slot_of[experts] = FREE
