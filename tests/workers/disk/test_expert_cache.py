"""The cache's decisions against the rule written plainly."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from placement.policies.baselines.caches import lfu_hits, lru_hits
from workers.disk.expert_cache import ExpertCache


class PlainCache:
    """Every use remembered; least worth goes first: the sum of 2^(-age / half_life), equals by slot."""

    def __init__(self, num_slots: int, half_life: float) -> None:
        self.slots: list[int | None] = [None] * num_slots
        self.uses: dict[int, list[int]] = {}
        self.pinned: set[int] = set()
        self.half_life = half_life
        self.now = 0

    def use(self, experts: list[int]) -> list[bool]:
        for expert in experts:
            self.uses.setdefault(expert, []).append(self.now)
        self.now += 1
        self.pinned = {expert for expert in experts if expert in self.slots}
        return [expert in self.slots for expert in experts]

    def worth(self, expert: int | None) -> float:
        if expert is None:
            return -math.inf
        # Rounded: two ways to the same sum differ in their last digits.
        return round(math.log2(sum(2.0 ** ((t - self.now) / self.half_life) for t in self.uses[expert])), 7)

    def take(self, experts: list[int]) -> list[int]:
        free = [slot for slot, expert in enumerate(self.slots) if expert not in self.pinned]
        taken = sorted(free, key=lambda slot: (self.worth(self.slots[slot]), slot))[: len(experts)]
        # Which of the slots is whose does not matter: all of them are needed.
        for expert, slot in zip(experts, sorted(taken), strict=False):
            self.slots[slot] = expert
        return taken


@given(
    num_slots=st.integers(1, 6),
    half_life=st.sampled_from([0.5, 1.0, 3.0, 100.0]),
    requests=st.lists(st.sets(st.integers(0, 9), min_size=1, max_size=5), max_size=40),
)
def test_contents_are_those_of_the_plain_rule(
    num_slots: int, half_life: float, requests: list[set[int]]
) -> None:
    cache, plain = ExpertCache(10, num_slots, half_life), PlainCache(num_slots, half_life)
    for request in requests:
        experts = sorted(request)
        here = cache.use(np.array(experts))
        assert here.tolist() == plain.use(experts)
        cache.unpin(np.array(experts)[here])
        plain.pinned.clear()
        waiting = np.array(experts)[~here]
        while len(waiting):
            slots = cache.take(waiting)
            assert set(slots.tolist()) == set(plain.take(waiting.tolist()))
            assert {e for e in cache.expert_in.tolist() if e >= 0} == {
                e for e in plain.slots if e is not None
            }
            # Equals go by slot, so both must have the same experts in the same slots from here on.
            plain.slots = [None if e < 0 else e for e in cache.expert_in.tolist()]
            cache.unpin(waiting[: len(slots)])
            waiting = waiting[len(slots) :]
        for expert, slot in enumerate(cache.slot_of.tolist()):
            assert slot < 0 or cache.expert_in[slot] == expert


def hits_of(requests: NDArray[np.int64], num_slots: int, half_life: float) -> NDArray[np.bool_]:
    cache = ExpertCache(int(requests.max()) + 1, num_slots, half_life)
    hits = []
    for row in requests.astype(np.int64):
        here = cache.use(row)
        cache.unpin(row[here])
        cache.unpin(row[~here][: len(cache.take(row[~here]))])
        hits.append(here)
    return np.array(hits)


def test_a_short_half_life_is_lru_and_a_long_one_lfu() -> None:
    rng = np.random.default_rng(0)
    popular = rng.zipf(1.3, 3000) % 60
    requests = popular[:, None]
    assert np.array_equal(hits_of(requests, 20, 0.02), lru_hits(requests, 20))
    assert hits_of(requests, 20, 1e9).mean() == pytest.approx(lfu_hits(requests, 20).mean(), abs=0.01)


def test_pinned_experts_never_make_room() -> None:
    cache = ExpertCache(5, 2, 10)
    cache.use(np.array([0, 1]))
    assert len(cache.take(np.array([0, 1]))) == 2
    cache.use(np.array([2]))
    assert len(cache.take(np.array([2]))) == 0
    cache.unpin(np.array([1]))
    assert cache.take(np.array([2, 3])).tolist() == [cache.slot_of[2]]
    assert cache.slot_of.tolist()[1] == -1
    assert cache.slot_of[0] >= 0


def test_what_is_dropped_is_free_and_gone() -> None:
    cache = ExpertCache(3, 2, 10)
    cache.use(np.array([0, 1]))
    cache.take(np.array([0, 1]))
    cache.drop(np.array([1]))
    assert cache.use(np.array([0, 1])).tolist() == [True, False]
    assert len(cache.take(np.array([1]))) == 1
