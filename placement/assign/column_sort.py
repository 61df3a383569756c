"""Sorts many short lists at once: each is a column, so that every comparison runs over neighbouring lists."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray

# Longer columns are sorted one by one: the network's comparisons grow faster than a column. So are few: the
# network needs many neighbours to be worth its calls.
_MOST_NETWORK_ROWS = 64
_FEWEST_COLUMNS_A_ROW = 50


def sort_columns(columns: NDArray[np.unsignedinteger]) -> list[NDArray[np.unsignedinteger]]:
    """The rows of `columns`, [length, num_columns], once every column ascends; `columns` may be overwritten.

    Batcher's merge exchange (Knuth, The Art of Computer Programming 3, 5.2.2, algorithm M): the same
    comparisons whatever the numbers are.
    """
    length, num_columns = columns.shape
    if length > _MOST_NETWORK_ROWS or num_columns < _FEWEST_COLUMNS_A_ROW * length:
        return list(np.ascontiguousarray(np.sort(columns.T.copy(), axis=1).T))
    rows, spare = list(columns), np.empty_like(columns[0])
    for low, high in _comparisons(length):
        np.minimum(rows[low], rows[high], out=spare)
        np.maximum(rows[low], rows[high], out=rows[high])
        rows[low], spare = spare, rows[low]
    return rows


@cache
def _comparisons(length: int) -> tuple[tuple[int, int], ...]:
    return tuple(_merge_exchange(length))


def _merge_exchange(length: int) -> Iterator[tuple[int, int]]:
    largest = 1 << max(length - 1, 0).bit_length() >> 1
    p = largest
    while p:
        q, r, distance = largest, 0, p
        while True:
            yield from ((i, i + distance) for i in range(length - distance) if i & p == r)
            if q == p:
                break
            distance, q, r = q - p, q >> 1, p
        p >>= 1
