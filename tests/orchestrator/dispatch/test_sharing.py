"""What each worker is asked for covers what is wanted once, in messages of the right size."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.dispatch.sharing import chosen_workers, shares

NUM_EXPERTS = 12


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))
def test_every_wanted_pair_is_asked_of_its_worker_once(
    seed: int, num_rows: int, top_k: int, num_workers: int, max_rows: int
) -> None:
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(50, num_rows, replace=False))
    expert_ids = rng.integers(-1, NUM_EXPERTS, (num_rows, top_k), dtype=np.int32)
    # Where nothing is wanted, anything may be chosen.
    chosen = rng.integers(0, num_workers, (num_rows, top_k))
    workers = chosen_workers(chosen, expert_ids)
    asked = {}
    for share in shares(rows, expert_ids, chosen, workers, max_rows):
        assert 1 <= len(share.rows) <= max_rows
        assert share.expert_ids.dtype == np.int32
        assert share.expert_ids.shape == (len(share.rows), top_k)
        assert share.pairs == np.count_nonzero(share.expert_ids >= 0)
        for row, ids in zip(share.rows.tolist(), share.expert_ids.tolist(), strict=True):
            assert any(expert >= 0 for expert in ids)
            for place, expert in enumerate(ids):
                if expert >= 0:
                    assert (row, place) not in asked
                    asked[row, place] = share.worker, expert
    wanted = {
        (int(rows[i]), j): (int(chosen[i, j]), int(expert_ids[i, j]))
        for i, j in np.argwhere(expert_ids >= 0).tolist()
    }
    assert asked == wanted


def test_who_is_missing_comes_first() -> None:
    chosen = np.array([[2, -1, 0, -1]])
    assert chosen_workers(chosen, np.array([[5, 1, 3, 0]], np.int32)) == [-1, 0, 2]
    assert chosen_workers(chosen, np.array([[5, -1, 3, -1]], np.int32)) == [0, 2]
    assert chosen_workers(chosen, np.full((1, 4), -1, np.int32)) == []


def test_a_single_worker_gets_the_rows_as_they_are() -> None:
    for num_rows in (1, 3):
        rows, ids = np.arange(num_rows), np.ones((num_rows, 2), np.int32)
        (share,) = shares(rows, ids, np.full((num_rows, 2), 4), [4], 8)
        assert share.rows is rows
        assert share.expert_ids is ids
