"""A trace that comes in pieces is the file that it would be in one, in the memory of a piece."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from placement.errors import InputError
from placement.given.stats import RoutingStats
from placement.given.trace_writer import write_trace
from placement.given.traces import GENERAL, SyntheticRouter
from tests.placement.shapes import small_shape

SHAPE = small_shape()


def test_pieces_are_read_back_as_one_trace(tmp_path: Path) -> None:
    trace = SyntheticRouter(SHAPE).trace(GENERAL, 100)
    write_trace(tmp_path / "t.npz", SHAPE, [trace[:30], trace[30:31], trace[31:]], 100, "text")
    loaded = RoutingStats.load(tmp_path / "t.npz", SHAPE)
    assert loaded.trace is not None
    assert np.array_equal(loaded.trace, trace)
    assert np.array_equal(loaded.counts, RoutingStats.from_trace(SHAPE, trace, "text").counts)
    assert (loaded.num_tokens, loaded.source) == (100, "text")


def test_memory_is_that_of_a_piece(tmp_path: Path) -> None:
    piece = SyntheticRouter(SHAPE).trace(GENERAL, 10_000)

    def pieces() -> Iterator[NDArray[np.uint16]]:
        for _ in range(100):
            yield piece

    tracemalloc.start()
    write_trace(tmp_path / "t.npz", SHAPE, pieces(), 1_000_000, "text")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * piece.nbytes + 2_000_000 < 100 * piece.nbytes / 5


def test_more_tokens_than_can_be_read_again_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected 1 to 1[67]"):
        write_trace(tmp_path / "t.npz", SHAPE, [], 2**31, "text")
    assert list(tmp_path.iterdir()) == []
