"""Which experts VRAM holds as text runs: fixed ones, the last used, or those used most of late.

A state machine without clock and memory: the simulator and a run drive the same code. Every expert has a home
elsewhere, in RAM, and what VRAM misses is computed there. Between steps the machine says which of the missed
experts to load in the background, and in whose place. docs/policies.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

HALF_LIFE_STEPS = 256
"""After so many steps a use counts half."""

_LARGEST_WEIGHT = 1e100


class ResidencyRule(StrEnum):
    """What stays in VRAM."""

    fixed = "fixed"
    lru = "lru"
    lfu = "lfu"


@dataclass(frozen=True, slots=True, eq=False)
class CacheStart:
    """How a run begins to keep experts in VRAM.

    Attributes:
        frequencies: absolute layer index -> float64 [num_experts], uses of each expert in a step as
            statistics have them. The cache begins with the hottest; where empty, with nothing.
    """

    rule: ResidencyRule = ResidencyRule.lfu
    frequencies: Mapping[int, NDArray[np.float64]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Swap:
    """An expert to load and the one whose place it takes, None for a free place.

    Experts are numbers: row of the MoE layer * experts of a layer + expert.
    """

    load: int
    evict: int | None


class Residency:
    """Contents of a cache of experts in VRAM.

    Attributes:
        rule: may be changed between steps; what was used and how often is counted under any rule.
        capacity: experts that fit, those on their way included.
    """

    __slots__ = (
        "_growth",
        "_heat",
        "_held",
        "_last",
        "_loadable",
        "_loading",
        "_missed",
        "_num_experts",
        "_step",
        "_weight",
        "capacity",
        "rule",
    )

    def __init__(
        self,
        rule: ResidencyRule,
        capacity: int,
        num_layers: int,
        num_experts: int,
        *,
        first: Sequence[int] = (),
        frequencies: NDArray[np.floating] | None = None,
        loadable: NDArray[np.bool_] | None = None,
        half_life_steps: float = HALF_LIFE_STEPS,
    ) -> None:
        """Begin with what VRAM holds already.

        Args:
            num_layers: MoE layers.
            num_experts: of a layer.
            first: what is held, the most valuable first; no more than `capacity`.
            frequencies: float [num_layers * num_experts], uses of each expert in a step as statistics have
                them; None for none.
            loadable: bool [num_layers * num_experts], what may be loaded; None for all.
        """
        size = num_layers * num_experts
        self.rule, self.capacity = rule, capacity
        self._num_experts = num_experts
        self._growth = 2.0 ** (1.0 / half_life_steps)
        self._weight = 1.0
        # What a use in every step adds up to: the sum of a geometric series.
        known = np.zeros(size) if frequencies is None else frequencies.astype(np.float64)
        self._heat = known / (1 - 1 / self._growth)
        self._held = np.zeros(size, dtype=np.bool_)
        self._held[list(first[:capacity])] = True
        self._last = np.full(size, -len(first) - 1, dtype=np.int64)
        self._last[list(first)] = -1 - np.arange(len(first))
        self._loadable = np.ones(size, dtype=np.bool_) if loadable is None else loadable
        self._loading: set[int] = set()
        self._missed: list[NDArray[np.int64]] = []
        self._step = 0

    @property
    def held(self) -> NDArray[np.bool_]:
        """bool [num_layers * num_experts], what can be computed in VRAM now; a view, not to be written."""
        view = self._held.view()
        view.flags.writeable = False
        return view

    @property
    def loading(self) -> frozenset[int]:
        """What is on its way."""
        return frozenset(self._loading)

    def begin_with(self, wanted: Sequence[int]) -> tuple[Swap, ...]:
        """What to load before the first step ends, by any rule: as many as there is room for.

        Args:
            wanted: the most valuable first, none of them held, and less so than those of an earlier call.
        """
        begun = int(self._held.sum()) + len(self._loading)
        keys = list(wanted[: max(self.capacity - begun, 0)])
        unused = self._last[keys] < 0
        self._last[keys] = np.where(unused, -1 - begun - np.arange(len(keys)), self._last[keys])
        self._loading.update(keys)
        return tuple(Swap(key, None) for key in keys)

    def note(self, row: int | NDArray[np.integer], expert_ids: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Count what a layer of a step asks for, once for all its rows.

        Args:
            row: of the MoE layer; or int [num_layers, 1], which notes several layers at once.
            expert_ids: int of any shape; for several layers [num_layers, n].

        Returns:
            bool, as `expert_ids`: whether VRAM holds the expert.
        """
        experts = row * self._num_experts + expert_ids.astype(np.int64)
        hits: NDArray[np.bool_] = self._held[experts]
        asked = np.unique(experts)
        self._last[asked] = self._step
        self._heat[asked] += self._weight
        self._missed.append(asked[~self._held[asked]])
        return hits

    def end_step(self, most_loads: int) -> tuple[Swap, ...]:
        """What to load now, at most so many experts, the most wanted first; called after each step.

        Only what this step missed is loaded, and only in place of what the rule wants less. What is to make
        room counts as gone at once; what is to be loaded counts once `loaded` says so.
        """
        missed = np.unique(np.concatenate(self._missed)) if self._missed else np.zeros(0, dtype=np.int64)
        self._missed.clear()
        swaps = () if self.rule is ResidencyRule.fixed else self._swaps(missed, most_loads)
        self._step += 1
        self._weight *= self._growth
        if self._weight > _LARGEST_WEIGHT:
            self._heat /= self._weight
            self._weight = 1.0
        return swaps

    def loaded(self, expert: int) -> bool:
        """An expert has arrived; false where its place was taken away meanwhile (`shrink`)."""
        if expert not in self._loading:
            return False
        self._loading.remove(expert)
        self._held[expert] = True
        return True

    def shrink(self, capacity: int) -> tuple[int, ...]:
        """Give back memory: keep no more than so many experts.

        Returns:
            What is to be dropped: what is on its way before what is held, the least wanted first.
        """
        self.capacity = min(self.capacity, max(capacity, 0))
        excess = max(0, len(self._loading) + int(self._held.sum()) - self.capacity)
        dropped = [*sorted(self._loading)[:excess]]
        self._loading.difference_update(dropped)
        dropped += self._coldest(excess - len(dropped))
        self._held[dropped] = False
        return tuple(dropped)

    def _swaps(self, missed: NDArray[np.int64], most_loads: int) -> tuple[Swap, ...]:
        wanted = missed[self._loadable[missed]]
        # What was on its way when it was missed may have arrived since.
        wanted = wanted[~(self._held[wanted] | np.isin(wanted, list(self._loading)))]
        score = self._score
        # Of equals the lower number, as everywhere.
        wanted = wanted[np.argsort(-score[wanted], kind="stable")][: max(most_loads, 0)]
        free = self.capacity - int(self._held.sum()) - len(self._loading)
        swaps = [Swap(expert, None) for expert in wanted[:free].tolist()]
        others = wanted[free:].tolist()
        for expert, coldest in zip(others, self._coldest(len(others)), strict=False):
            if score[expert] <= score[coldest]:
                break
            swaps.append(Swap(expert, coldest))
        self._loading.update(swap.load for swap in swaps)
        self._held[[swap.evict for swap in swaps if swap.evict is not None]] = False
        return tuple(swaps)

    @property
    def _score(self) -> NDArray[np.float64] | NDArray[np.int64]:
        """How much the rule wants each expert."""
        return self._last if self.rule is ResidencyRule.lru else self._heat

    def _coldest(self, count: int) -> list[int]:
        held = np.flatnonzero(self._held)
        coldest: list[int] = held[np.argsort(self._score[held], kind="stable")[:count]].tolist()
        return coldest
