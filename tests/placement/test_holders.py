"""The holder table says the same whichever way it is made."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from placement.holders import NO_WORKER, HolderTable

masks_with_holders = arrays(np.bool_, st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 8)))


@given(masks=masks_with_holders)
def test_masks_come_back_out(masks: NDArray[np.bool_]) -> None:
    table = HolderTable.from_masks(masks)
    assert all(np.array_equal(table.mask(worker), mask) for worker, mask in enumerate(masks))
    assert np.array_equal(table.experts_per_worker(len(masks)), masks.sum(axis=(1, 2)))


@given(masks=masks_with_holders)
def test_holders_ascend_and_padding_stands_behind(masks: NDArray[np.bool_]) -> None:
    table = HolderTable.from_masks(masks)
    for layer, expert in np.ndindex(*masks.shape[1:]):
        holders = np.flatnonzero(masks[:, layer, expert]).tolist()
        padding = [NO_WORKER] * (table.table.shape[2] - len(holders))
        assert table.table[layer, expert].tolist() == holders + padding
        if holders:
            assert table.layers[layer].of(expert) == tuple(holders)
    assert np.array_equal(table.masks(len(masks)), masks)


def test_single_holders_make_the_same_table_as_masks() -> None:
    workers = np.random.default_rng(0).integers(0, 4, (3, 9))
    masks = workers[None] == np.arange(4)[:, None, None]
    assert HolderTable.from_single(workers) == HolderTable.from_masks(masks)
    assert not HolderTable.from_single(workers).has_replicas


def test_without_a_worker_its_replicas_serve_and_what_only_it_held_is_held_by_nobody() -> None:
    masks = np.array([[[True, True, False]], [[True, False, True]]])  # worker, layer, expert
    table = HolderTable.from_masks(masks)
    left = table.without({0}).layers[0]
    assert [left.of(expert) for expert in range(3)] == [(1,), (-1,), (1,)]
    assert table.without(()) == table


def test_renumbered_workers_hold_the_same_experts() -> None:
    masks = np.random.default_rng(1).random((3, 4, 9)) < 0.5
    more = np.zeros((5, 4, 9), dtype=bool)
    more[[0, 2, 4]] = masks
    assert HolderTable.from_masks(masks).renumbered([0, 2, 4]) == HolderTable.from_masks(more)
