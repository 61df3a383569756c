"""Hits of caches against the rules written down plainly, and OPT against every cache there could be."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from placement.policies.baselines.caches import lfu_hits, lru_hits, opt_hits
from tests.examples import examples

NUM_EXPERTS = 6
WIDTH = 3

requests_of_experts = st.lists(
    st.lists(st.integers(0, NUM_EXPERTS - 1), max_size=WIDTH, unique=True), max_size=12
)
capacities = st.integers(0, NUM_EXPERTS + 1)
firsts = st.permutations(range(NUM_EXPERTS)).flatmap(
    lambda order: st.integers(0, NUM_EXPERTS).map(lambda n: order[:n])
)


def as_array(requests: list[list[int]]) -> NDArray[np.int32]:
    rows = [row + [-1] * (WIDTH - len(row)) for row in requests]
    return np.array(rows, dtype=np.int32).reshape(len(rows), WIDTH)


def plain_lru(requests: list[list[int]], capacity: int, first: list[int]) -> int:
    cache = first[:capacity]  # most recent in front
    hits = 0
    for row in requests:
        hits += len(set(row) & set(cache))
        cache = (row[::-1] + [expert for expert in cache if expert not in row])[:capacity]
    return hits


def plain_lfu(requests: list[list[int]], capacity: int, first: list[int], before: list[int]) -> int:
    cache = set(first[:capacity])
    uses = Counter(dict(enumerate(before)))
    last = {expert: -1 - rank for rank, expert in enumerate(first)}
    hits = now = 0
    for row in requests:
        hits += len(set(row) & cache)
        for expert in row:
            uses[expert] += 1
            last[expert] = now
            now += 1
        others = sorted(cache - set(row), key=lambda e: (uses[e], last[e]), reverse=True)
        cache = set((row[::-1] + others)[:capacity])
    return hits


def best_of_all(requests: list[list[int]], capacity: int) -> int:
    """Hits of the best sequence of contents, each a part of the last and what was asked for."""
    size = min(capacity, NUM_EXPERTS)
    best = {frozenset(held): 0 for held in itertools.combinations(range(NUM_EXPERTS), size)}
    for row in requests:
        after: dict[frozenset[int], int] = {}
        for held, hits in best.items():
            found = hits + len(held & set(row))
            union = held | set(row)
            for kept in itertools.combinations(sorted(union), min(capacity, len(union))):
                key = frozenset(kept)
                after[key] = max(after.get(key, 0), found)
        best = after
    return max(best.values())


@given(
    requests=requests_of_experts,
    capacity=capacities,
    first=firsts,
    before=st.just([]) | st.lists(st.integers(0, 4), min_size=NUM_EXPERTS, max_size=NUM_EXPERTS),
)
@examples(200)
def test_lru_and_lfu_are_their_rules(
    requests: list[list[int]], capacity: int, first: list[int], before: list[int]
) -> None:
    array = as_array(requests)
    assert lru_hits(array, capacity, first).sum() == plain_lru(requests, capacity, first)
    found = lfu_hits(array, capacity, first, before)
    assert found.sum() == plain_lfu(requests, capacity, first, before)


@given(requests=requests_of_experts, capacity=st.integers(0, 3))
def test_opt_has_as_many_hits_as_the_best_of_all_caches(requests: list[list[int]], capacity: int) -> None:
    assert opt_hits(as_array(requests), capacity).sum() == best_of_all(requests, capacity)


@given(seed=st.integers(0, 10_000), capacity=st.integers(0, 45))
def test_no_cache_and_no_fixed_contents_have_more_hits_than_opt(seed: int, capacity: int) -> None:
    generator = np.random.default_rng(seed)
    popularity = generator.exponential(size=40) ** 2
    requests = np.argsort(generator.exponential(size=(60, 40)) / popularity, axis=1)[:, :8]
    first = generator.permutation(40).tolist()
    most = opt_hits(requests, capacity).sum()
    assert lru_hits(requests, capacity, first).sum() <= most
    assert lfu_hits(requests, capacity, first).sum() <= most
    hottest = np.argsort(-np.bincount(requests.ravel(), minlength=40))[:capacity]
    assert np.isin(requests, hottest).sum() <= most


@given(requests=requests_of_experts, capacity=capacities, first=firsts)
def test_hits_are_among_what_was_asked_for(
    requests: list[list[int]], capacity: int, first: list[int]
) -> None:
    array = as_array(requests)
    for hits in (
        lru_hits(array, capacity, first),
        lfu_hits(array, capacity, first),
        opt_hits(array, capacity),
    ):
        assert hits.shape == array.shape
        assert not hits[array < 0].any()
        if capacity > NUM_EXPERTS and len(first) == NUM_EXPERTS:
            assert hits[array >= 0].all()
