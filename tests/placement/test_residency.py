"""What VRAM holds: against the rules written plainly, and what holds for any order of calls."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from placement.policies.baselines.caches import opt_hits
from placement.residency import Residency, ResidencyRule, Swap
from tests.examples import examples

LAYERS, EXPERTS = 2, 4
SIZE = LAYERS * EXPERTS

# A step: what each layer asks for, repeats allowed, since several rows ask.
steps_of = st.lists(
    st.lists(st.lists(st.integers(0, EXPERTS - 1), min_size=3, max_size=3), min_size=2, max_size=2),
    max_size=12,
)


def run(
    residency: Residency, steps: list[list[list[int]]], most_loads: int, delay: int = 0
) -> tuple[list[frozenset[int]], int]:
    """Contents before each step and hits of distinct experts; copies arrive `delay` steps late."""
    contents, hits, under_way = [], 0, []
    for number, step in enumerate(steps):
        for due, swap in [entry for entry in under_way if entry[0] <= number]:
            residency.loaded(swap.load)
            under_way.remove((due, swap))
        contents.append(frozenset(np.flatnonzero(residency.held).tolist()))
        for row, ids in enumerate(step):
            found = residency.note(row, np.array(ids))
            hits += len({expert for expert, is_hit in zip(ids, found, strict=True) if is_hit})
        under_way += [(number + 1 + delay, swap) for swap in residency.end_step(most_loads)]
    return contents, hits


def plain_contents(
    rule_: ResidencyRule, steps: list[list[list[int]]], capacity: int, first: list[int], most_loads: int
) -> list[frozenset[int]]:
    """The rules in plain words; a use counts half two steps later, in exact fractions of the square root."""
    held, contents = set(first[:capacity]), []
    last = {expert: -1 - rank for rank, expert in enumerate(first)}
    used: dict[int, Counter[int]] = {expert: Counter() for expert in range(SIZE)}
    for number, step in enumerate(steps):
        contents.append(frozenset(held))
        asked = {row * EXPERTS + expert for row, ids in enumerate(step) for expert in ids}
        for expert in asked:
            last[expert] = number
            used[expert][number] += 1
        if rule_ is ResidencyRule.fixed:
            continue

        def score(expert: int, now: int = number) -> float:
            if rule_ is ResidencyRule.lru:
                return last.get(expert, -100)
            return float(sum(Fraction(1, 2) ** (now - then) for then in used[expert]))

        wanted = sorted(asked - held, key=lambda e: (-score(e), e))[:most_loads]
        for expert in wanted:
            coldest = min(held, key=lambda e: (score(e), e), default=None)
            if len(held) < capacity:
                held.add(expert)
            elif coldest is not None and score(expert) > score(coldest):
                held.remove(coldest)
                held.add(expert)
    return contents


@given(
    rule_=st.sampled_from(list(ResidencyRule)),
    steps=steps_of,
    capacity=st.integers(0, SIZE),
    first=st.permutations(range(SIZE)),
    most_loads=st.integers(0, 5),
)
@examples(150)
def test_contents_are_the_rules_where_copies_take_no_longer_than_a_step(
    rule_: ResidencyRule, steps: list[list[list[int]]], capacity: int, first: list[int], most_loads: int
) -> None:
    residency = Residency(rule_, capacity, LAYERS, EXPERTS, first=first[:capacity], half_life_steps=1)
    contents, _ = run(residency, steps, most_loads)
    assert contents == plain_contents(rule_, steps, capacity, first[:capacity], most_loads)


@given(
    rule_=st.sampled_from(list(ResidencyRule)),
    steps=steps_of,
    capacity=st.integers(0, SIZE),
    first=st.permutations(range(SIZE)),
    most_loads=st.integers(0, 5),
    delay=st.integers(0, 3),
)
@examples(150)
def test_no_rule_has_more_hits_than_opt_however_late_copies_come(
    rule_: ResidencyRule,
    steps: list[list[list[int]]],
    capacity: int,
    first: list[int],
    most_loads: int,
    delay: int,
) -> None:
    """OPT may change its contents after a whole step, for what the step asked for, as these do."""
    _, hits = run(
        Residency(rule_, capacity, LAYERS, EXPERTS, first=first[:capacity]), steps, most_loads, delay
    )
    requests = np.full((len(steps), LAYERS * EXPERTS), -1)
    for number, step in enumerate(steps):
        asked = sorted({row * EXPERTS + expert for row, ids in enumerate(step) for expert in ids})
        requests[number, : len(asked)] = asked
    assert hits <= opt_hits(requests, capacity).sum()


@given(
    rule_=st.sampled_from(list(ResidencyRule)),
    steps=steps_of,
    capacity=st.integers(0, SIZE),
    first=st.permutations(range(SIZE)),
    at_once=st.integers(1, SIZE),
)
@examples(50)
def test_what_is_loaded_at_first_is_as_if_it_had_been_held(
    rule_: ResidencyRule, steps: list[list[list[int]]], capacity: int, first: list[int], at_once: int
) -> None:
    loading = Residency(rule_, capacity, LAYERS, EXPERTS)
    swaps: list[Swap] = []
    for start in range(0, SIZE, at_once):
        swaps += loading.begin_with(first[start : start + at_once])
    assert swaps == [Swap(key, None) for key in first[:capacity]]
    assert all(loading.loaded(swap.load) for swap in swaps)
    held = Residency(rule_, capacity, LAYERS, EXPERTS, first=first[:capacity])
    assert run(loading, steps, 3) == run(held, steps, 3)


class AnyOrder(RuleBasedStateMachine):
    """Steps, arrivals, changes of the rule and losses of memory in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.residency = Residency(ResidencyRule.lru, 3, LAYERS, EXPERTS, first=[0, 5])
        self.loadable = np.ones(SIZE, dtype=np.bool_)
        self.memory = {0, 5}  # what lies in VRAM or is being written there
        self.under_way: list[int] = []
        self.asked: set[int] = set()

    @rule(row=st.integers(0, 1), ids=st.lists(st.integers(0, EXPERTS - 1), max_size=3))
    def note(self, row: int, ids: list[int]) -> None:
        before = self.residency.held.copy()
        found = self.residency.note(row, np.array(ids, dtype=np.int32))
        assert found.tolist() == [bool(before[row * EXPERTS + expert]) for expert in ids]
        self.asked |= {row * EXPERTS + expert for expert in ids}

    @rule(most=st.integers(0, 3))
    def end_step(self, most: int) -> None:
        held, asked = self.residency.held.copy(), self.asked
        self.asked = set()
        swaps = self.residency.end_step(most)
        assert len(swaps) <= most
        if self.residency.rule is ResidencyRule.fixed:
            assert swaps == ()
        for swap in swaps:
            assert swap.load in asked
            assert swap.load not in self.memory
            if swap.evict is not None:
                assert held[swap.evict]
                self.memory.remove(swap.evict)
            self.memory.add(swap.load)
            self.under_way.append(swap.load)

    @precondition(lambda self: self.under_way)
    @rule()
    def arrive(self) -> None:
        expert = self.under_way.pop(0)
        assert self.residency.loaded(expert) == (expert in self.memory)

    @rule(rule_=st.sampled_from(list(ResidencyRule)))
    def switch(self, rule_: ResidencyRule) -> None:
        self.residency.rule = rule_

    @precondition(lambda self: self.residency.capacity > 0)
    @rule(fewer=st.integers(0, 1))
    def lose_memory(self, fewer: int) -> None:
        dropped = self.residency.shrink(self.residency.capacity - fewer)
        assert set(dropped) <= self.memory
        assert len(dropped) <= fewer
        self.memory -= set(dropped)

    @invariant()
    def never_more_than_fits(self) -> None:
        held = set(np.flatnonzero(self.residency.held).tolist())
        assert held | self.residency.loading == self.memory
        assert not held & self.residency.loading
        assert len(self.memory) <= self.residency.capacity


TestAnyOrder = AnyOrder.TestCase


def test_what_statistics_call_hot_is_not_evicted_for_a_few_uses() -> None:
    """Under LFU; the last used has the place of anything under LRU."""
    frequencies = np.array([0.9, 0.5, 0, 0, 0, 0, 0, 0])
    contents = {}
    for rule_ in ResidencyRule:
        residency = Residency(rule_, 2, LAYERS, EXPERTS, first=[0, 1], frequencies=frequencies)
        contents[rule_], _ = run(residency, [[[2, 3, 2], [0, 0, 0]]] * 5, most_loads=1)
    assert contents[ResidencyRule.lfu][-1] == contents[ResidencyRule.fixed][-1] == {0, 1}
    assert not contents[ResidencyRule.lru][-1] & {0, 1}


@pytest.mark.parametrize(("later_uses", "swaps"), [(1, ()), (2, (Swap(1, 0),))])
def test_after_a_half_life_a_use_counts_half(later_uses: int, swaps: tuple[Swap, ...]) -> None:
    """Three uses then are as many as one and a half now."""
    residency = Residency(ResidencyRule.lfu, 1, LAYERS, EXPERTS, first=[0], half_life_steps=4)
    for _ in range(3):
        residency.note(0, np.array([0]))
    for _ in range(4):
        assert residency.end_step(1) == ()
    for _ in range(later_uses):
        residency.note(0, np.array([1]))
    assert residency.end_step(1) == swaps


def test_uses_are_counted_without_end() -> None:
    """Weights grow from step to step and are scaled back in time, which changes no decision."""
    residency = Residency(ResidencyRule.lfu, 1, LAYERS, EXPERTS, first=[0], half_life_steps=0.01)
    for number in range(20):
        residency.note(0, np.array([number % 4]))
        swaps = residency.end_step(1)
        assert [swap.load for swap in swaps] == ([number % 4] if number else [])
        for swap in swaps:
            residency.loaded(swap.load)
    assert np.isfinite(residency._heat).all()


def test_only_what_may_be_loaded_is() -> None:
    loadable = np.zeros(SIZE, dtype=np.bool_)
    loadable[[1, 6]] = True
    residency = Residency(ResidencyRule.lru, 3, LAYERS, EXPERTS, loadable=loadable)
    residency.note(np.arange(2)[:, None], np.array([[0, 1, 2], [2, 2, 3]]))
    assert residency.end_step(8) == (Swap(1, None), Swap(6, None))


@pytest.mark.parametrize("rule_", list(ResidencyRule))
def test_memory_given_back_costs_the_least_wanted(rule_: ResidencyRule) -> None:
    frequencies = np.array([0.9, 0.5, 0.1, 0, 0, 0, 0, 0])
    residency = Residency(rule_, 3, LAYERS, EXPERTS, first=[0, 1, 2], frequencies=frequencies)
    residency.note(0, np.array([0, 2]))
    assert residency.shrink(2) == ((1,) if rule_ is ResidencyRule.lru else (2,))
    assert residency.shrink(3) == ()
    assert residency.capacity == 2
