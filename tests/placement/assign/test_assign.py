"""The choice among replicas: always a holder, the soonest done, one step as many, repeatable."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from placement.assign import column_sort, many_steps, replica_columns
from placement.assign.many_steps import assign_layers, assign_steps
from placement.assign.one_step import ReplicaCosts, assign_experts
from placement.holders import HolderTable
from tests.examples import examples

NUM_EXPERTS = 12
NUM_WORKERS = 4


def table_of(holders: list[set[int]]) -> HolderTable:
    """One layer; `holders[expert]` is the set of workers."""
    masks = np.array([[[w in h for h in holders]] for w in range(NUM_WORKERS)])
    return HolderTable.from_masks(masks)


holder_sets = st.lists(
    st.sets(st.integers(0, NUM_WORKERS - 1), min_size=1), min_size=NUM_EXPERTS, max_size=NUM_EXPERTS
)
expert_rows = st.lists(
    st.lists(st.integers(0, NUM_EXPERTS - 1), min_size=3, max_size=3, unique=True), min_size=1, max_size=6
).map(lambda rows: np.array(rows, dtype=np.int32))
seconds = st.sampled_from([0.0, 0.1, 0.2, 0.3, 1.0, 2.5])
all_costs = st.lists(st.tuples(seconds, seconds), min_size=NUM_WORKERS, max_size=NUM_WORKERS).map(
    lambda pairs: costs_of(*zip(*pairs, strict=True))
)


def costs_of(ask_s: tuple[float, ...], expert_s: tuple[float, ...]) -> ReplicaCosts:
    return ReplicaCosts(np.array(ask_s), np.array(expert_s))


EQUAL = ReplicaCosts.unknown(NUM_WORKERS, (0,))


@given(holders=holder_sets, ids=expert_rows, costs=all_costs)
def test_every_expert_goes_to_one_of_its_holders_and_to_the_same_in_all_rows(
    holders: list[set[int]], ids: NDArray[np.int32], costs: ReplicaCosts
) -> None:
    chosen = assign_experts(ids, table_of(holders).layers[0], costs)
    assert chosen.shape == ids.shape
    workers_of: dict[int, set[int]] = {}
    for expert, worker in zip(ids.ravel().tolist(), chosen.ravel().tolist(), strict=True):
        workers_of.setdefault(expert, set()).add(worker)
    assert all(len(workers) == 1 and workers <= holders[expert] for expert, workers in workers_of.items())


@given(holders=holder_sets, ids=expert_rows, costs=all_costs)
def test_the_rule_holds_expert_by_expert(
    holders: list[set[int]], ids: NDArray[np.int32], costs: ReplicaCosts
) -> None:
    """The rule as docs state it, written down a second time without arrays."""
    done_s = dict(enumerate((costs.ask_s + costs.expert_s).tolist()))
    expected: dict[int, int] = {}
    for expert in sorted(set(ids.ravel().tolist()), key=lambda e: (len(holders[e]), e)):
        expected[expert] = min(holders[expert], key=lambda w: (done_s[w], w))
        done_s[expected[expert]] += float(costs.expert_s[expected[expert]])
    chosen = assign_experts(ids, table_of(holders).layers[0], costs)
    assert chosen.tolist() == [[expected[expert] for expert in row] for row in ids.tolist()]


@given(holders=holder_sets, ids=expert_rows, costs=all_costs)
def test_the_order_of_rows_and_slots_does_not_matter(
    holders: list[set[int]], ids: NDArray[np.int32], costs: ReplicaCosts
) -> None:
    layer = table_of(holders).layers[0]
    chosen = assign_experts(ids, layer, costs)
    assert np.array_equal(assign_experts(ids[::-1, ::-1], layer, costs), chosen[::-1, ::-1])


@given(
    seed=st.integers(0, 2**32 - 1),
    num_steps=st.integers(0, 40),
    num_tokens=st.integers(1, 5),
    num_workers=st.integers(1, 9),
    gaps=st.booleans(),
    even=st.booleans(),
    compared=st.sampled_from([1, 4, 64]),
)
@example(seed=0, num_steps=40, num_tokens=1, num_workers=3, gaps=True, even=True, compared=64)
@example(seed=0, num_steps=40, num_tokens=5, num_workers=9, gaps=False, even=True, compared=4)
@examples(150)
def test_many_steps_at_once_are_many_single_steps(
    seed: int, num_steps: int, num_tokens: int, num_workers: int, gaps: bool, even: bool, compared: int
) -> None:
    """Also where experts are held by nobody, choices are left out (-1), costs tie and steps are long."""
    generator = np.random.default_rng(seed)
    masks = generator.random((num_workers, 1, NUM_EXPERTS)) < generator.random()
    layer = HolderTable.from_masks(masks).layers[0]
    ids = np.argsort(generator.random((num_steps, num_tokens, NUM_EXPERTS)), axis=2)[:, :, :3]
    if gaps:
        ids[generator.random(ids.shape) < 0.2] = -1
    costs = ReplicaCosts(*generator.random((2, num_workers)))
    if even:
        costs = ReplicaCosts.unknown(num_workers, (0,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(many_steps, "_FEW_STEPS", 0)
        patch.setattr(many_steps, "_BLOCK_CHOICES", 16 * num_tokens * 3)
        patch.setattr(replica_columns, "_COMPARED", compared)
        patch.setattr(column_sort, "_FEWEST_COLUMNS_A_ROW", 0)
        chosen = assign_steps(ids, layer, costs)
    each = [assign_experts(step, layer, costs) for step in ids]
    counted = ids >= 0
    assert chosen.shape == ids.shape
    assert np.array_equal(chosen[counted], np.array(each).reshape(ids.shape)[counted])


@given(
    seed=st.integers(0, 2**32 - 1),
    num_layers=st.integers(1, 4),
    num_steps=st.integers(0, 6),
    block=st.integers(1, 16),
    few=st.sampled_from([0, 16]),
)
def test_many_layers_at_once_are_many_single_layers(
    seed: int, num_layers: int, num_steps: int, block: int, few: int
) -> None:
    """Layers without copies among those with them included."""
    generator = np.random.default_rng(seed)
    share = generator.random((num_layers, 1)) * generator.integers(0, 2, (num_layers, 1))
    masks = generator.random((NUM_WORKERS, num_layers, NUM_EXPERTS)) < share
    masks[0] |= ~masks.any(axis=0)
    layers = HolderTable.from_masks(masks).layers
    ids = np.argsort(generator.random((num_layers, num_steps, 2, NUM_EXPERTS)), axis=3)[..., :3]
    costs = ReplicaCosts(*generator.random((2, NUM_WORKERS)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(many_steps, "_FEW_STEPS", few)
        patch.setattr(many_steps, "_BLOCK_CHOICES", block * 6)
        chosen = assign_layers(ids, layers, costs)
    each = [
        [assign_experts(step, layer, costs) for step in steps]
        for steps, layer in zip(ids, layers, strict=True)
    ]
    assert np.array_equal(chosen, np.array(each).reshape(chosen.shape))
    assert chosen.dtype == np.int16


@given(seed=st.integers(0, 1000))
def test_the_choice_is_near_the_best_of_all_choices(seed: int) -> None:
    """Mean time of a layer against every combination of holders; the rule alone is not exact."""
    generator = np.random.default_rng(seed)
    found_s = best_s = 0.0
    for _ in range(20):
        masks = generator.random((NUM_WORKERS, 1, NUM_EXPERTS)) < 0.45
        masks[0] |= ~masks.any(axis=0)
        layer = HolderTable.from_masks(masks).layers[0]
        costs = ReplicaCosts(*generator.uniform(0.1, 1.0, (2, NUM_WORKERS)))
        ids = generator.permutation(NUM_EXPERTS)[:6]

        def time_s(workers: tuple[int, ...], costs: ReplicaCosts = costs) -> float:
            count = np.bincount(workers, minlength=NUM_WORKERS)
            return float(np.where(count, costs.ask_s + count * costs.expert_s, 0.0).max())

        found_s += time_s(tuple(assign_experts(ids[None], layer, costs)[0].tolist()))
        best_s += min(time_s(workers) for workers in itertools.product(*(layer.of(e) for e in ids)))
    assert best_s <= found_s + 1e-9
    assert found_s <= 1.05 * best_s


def test_a_faster_holder_takes_more() -> None:
    holders: list[set[int]] = [{1, 2}] * NUM_EXPERTS
    costs = costs_of((0, 1, 1, 1), (1, 0.1, 0.3, 1))
    chosen = assign_experts(np.arange(8)[None], table_of(holders).layers[0], costs)
    assert Counter(chosen.ravel().tolist()) == {1: 6, 2: 2}


def test_a_round_trip_is_worth_it_once_enough_waits_at_home() -> None:
    layer = table_of([{0, 1}] * NUM_EXPERTS).layers[0]
    costs = costs_of((0, 2.5, 0, 0), (1, 1, 1, 1))
    assert assign_experts(np.arange(3)[None], layer, costs).tolist() == [[0, 0, 0]]
    assert assign_experts(np.arange(5)[None], layer, costs).tolist() == [[0, 0, 0, 1, 0]]


def test_equal_replicas_share_the_load() -> None:
    holders: list[set[int]] = [{1, 2}] * NUM_EXPERTS
    chosen = assign_experts(np.arange(8)[None], table_of(holders).layers[0], EQUAL)
    assert Counter(chosen.ravel().tolist()) == {1: 4, 2: 4}


def test_no_rows_need_no_workers() -> None:
    for holders in ([{0}] * NUM_EXPERTS, [{0, 1}] * NUM_EXPERTS):
        assert assign_experts(np.zeros((0, 3), dtype=np.int32), table_of(holders).layers[0], EQUAL).shape == (
            0,
            3,
        )


def test_an_expert_that_nobody_holds_has_no_worker_and_disturbs_no_other() -> None:
    holders: list[set[int]] = [{0, 1}, {1, 2}, {3}, *[{3}] * (NUM_EXPERTS - 3)]
    left = table_of(holders).without([3]).layers[0]
    assert assign_experts(np.array([[0, 1, 2]]), left, EQUAL).tolist() == [[0, 1, -1]]
    assert assign_experts(np.array([[5, 2, 1]]), left, EQUAL).tolist() == [[-1, -1, 1]]


def test_what_is_not_to_be_computed_does_not_count_as_load() -> None:
    """The last expert, which -1 would name as an index, has its only holder in the choice's way."""
    holders: list[set[int]] = [{1, 2}, *[{1}] * (NUM_EXPERTS - 1)]
    layer = table_of(holders).layers[0]
    assert assign_experts(np.array([[0, -1], [0, -1]]), layer, EQUAL)[:, 0].tolist() == [1, 1]
    holders = [{1, 2}, *[{2}] * (NUM_EXPERTS - 1)]
    assert assign_experts(np.array([[0, -1]]), table_of(holders).layers[0], EQUAL)[0, 0] == 1


def test_numbers_beyond_sixteen_bits_choose_alike() -> None:
    """Workers times choices of a step: 32 workers of which few hold anything, 128 tokens."""
    generator = np.random.default_rng(5)
    num_workers, num_experts = 32, 64
    holders = [set(generator.choice(8, 2, replace=False).tolist()) for _ in range(num_experts)]
    masks = np.zeros((num_workers, 1, num_experts), dtype=np.bool_)
    for expert, workers in enumerate(holders):
        masks[list(workers), 0, expert] = True
    layer = HolderTable.from_masks(masks).layers[0]
    costs = ReplicaCosts(generator.random(num_workers), generator.random(num_workers))
    order = generator.random((40, 128, num_experts)).argsort(axis=2)
    ids = order[:, :, :8].astype(np.int32)
    one_by_one = np.stack([assign_experts(step, layer, costs) for step in ids])
    np.testing.assert_array_equal(assign_steps(ids, layer, costs), one_by_one)
