"""Columns come out sorted, as numpy sorts them, whatever their length and number."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.assign import column_sort
from placement.assign.column_sort import sort_columns


@given(
    length=st.integers(1, 70),
    num_columns=st.integers(0, 9),
    seed=st.integers(0, 1000),
    fewest=st.integers(0, 2),
)
def test_columns_ascend_and_keep_their_numbers(length: int, num_columns: int, seed: int, fewest: int) -> None:
    numbers = np.random.default_rng(seed).integers(0, 20, (length, num_columns)).astype(np.uint16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(column_sort, "_FEWEST_COLUMNS_A_ROW", fewest)
        found = np.stack(sort_columns(numbers.copy()))
    assert np.array_equal(found, np.sort(numbers, axis=0))


@pytest.mark.parametrize("length", range(1, 13))
def test_the_network_sorts_every_order_of_zeros_and_ones(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What sorts these sorts everything (Knuth, The Art of Computer Programming 3, 5.3.4, theorem Z)."""
    monkeypatch.setattr(column_sort, "_FEWEST_COLUMNS_A_ROW", 0)
    numbers = (np.arange(1 << length) >> np.arange(length)[:, None] & 1).astype(np.uint8)
    found = np.stack(sort_columns(numbers.copy()))
    assert np.array_equal(found, np.sort(numbers, axis=0))
