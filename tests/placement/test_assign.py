"""The choice among replicas: always a holder, the local one first, no needless message, repeatable."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from placement.assign import assign_experts
from placement.holders import HolderTable

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
local_workers = st.none() | st.integers(0, NUM_WORKERS - 1)


@given(holders=holder_sets, ids=expert_rows, local=local_workers)
def test_every_expert_goes_to_one_of_its_holders_and_to_the_same_in_all_rows(
    holders: list[set[int]], ids: NDArray[np.int32], local: int | None
) -> None:
    chosen = assign_experts(ids, table_of(holders).layers[0], local)
    assert chosen.shape == ids.shape
    workers_of: dict[int, set[int]] = {}
    for expert, worker in zip(ids.ravel().tolist(), chosen.ravel().tolist(), strict=True):
        workers_of.setdefault(expert, set()).add(worker)
    assert all(len(workers) == 1 and workers <= holders[expert] for expert, workers in workers_of.items())


@given(holders=holder_sets, ids=expert_rows, local=local_workers)
def test_the_rule_holds_expert_by_expert(
    holders: list[set[int]], ids: NDArray[np.int32], local: int | None
) -> None:
    """The rule as docs state it, written down a second time without arrays."""
    distinct = sorted(set(ids.ravel().tolist()))
    expected = {expert: min(holders[expert]) for expert in distinct if len(holders[expert]) == 1}
    asked_anyway = set(expected.values())
    load = Counter(expected.values())
    for expert in distinct:
        if len(holders[expert]) == 1:
            continue
        if local in holders[expert]:
            worker = local
        else:
            candidates = holders[expert] & asked_anyway or holders[expert]
            worker = min(candidates, key=lambda w: (load[w], w))
        assert worker is not None
        expected[expert] = worker
        load[worker] += 1
    chosen = assign_experts(ids, table_of(holders).layers[0], local)
    assert chosen.tolist() == [[expected[expert] for expert in row] for row in ids.tolist()]


@given(holders=holder_sets, ids=expert_rows, local=local_workers)
def test_the_order_of_rows_and_slots_does_not_matter(
    holders: list[set[int]], ids: NDArray[np.int32], local: int | None
) -> None:
    layer = table_of(holders).layers[0]
    chosen = assign_experts(ids, layer, local)
    assert np.array_equal(assign_experts(ids[::-1, ::-1], layer, local), chosen[::-1, ::-1])


def test_a_replica_at_a_worker_that_must_be_asked_saves_a_message() -> None:
    holders: list[set[int]] = [{3}, {0, 3}] + [{0}] * (NUM_EXPERTS - 2)
    chosen = assign_experts(np.array([[0, 1]]), table_of(holders).layers[0])
    assert chosen.tolist() == [[3, 3]]


def test_equal_replicas_share_the_load() -> None:
    holders: list[set[int]] = [{1, 2}] * NUM_EXPERTS
    chosen = assign_experts(np.arange(8)[None], table_of(holders).layers[0])
    assert Counter(chosen.ravel().tolist()) == {1: 4, 2: 4}


def test_no_rows_need_no_workers() -> None:
    for holders in ([{0}] * NUM_EXPERTS, [{0, 1}] * NUM_EXPERTS):
        assert assign_experts(np.zeros((0, 3), dtype=np.int32), table_of(holders).layers[0]).shape == (0, 3)


def test_an_expert_that_nobody_holds_has_no_worker_and_disturbs_no_other() -> None:
    holders: list[set[int]] = [{0, 1}, {1, 2}, {3}, *[{3}] * (NUM_EXPERTS - 3)]
    left = table_of(holders).without([3]).layers[0]
    assert assign_experts(np.array([[0, 1, 2]]), left, 0).tolist() == [[0, 1, -1]]
    assert assign_experts(np.array([[5, 2, 1]]), left, 0).tolist() == [[-1, -1, 1]]


def test_what_is_not_to_be_computed_does_not_count_as_load() -> None:
    """The last expert, which -1 would name as an index, has its only holder in the choice's way."""
    holders: list[set[int]] = [{1, 2}, *[{1}] * (NUM_EXPERTS - 1)]
    layer = table_of(holders).layers[0]
    assert assign_experts(np.array([[0, -1], [0, -1]]), layer, 0)[:, 0].tolist() == [1, 1]
    holders = [{1, 2}, *[{2}] * (NUM_EXPERTS - 1)]
    assert assign_experts(np.array([[0, -1]]), table_of(holders).layers[0], 0)[0, 0] == 1
