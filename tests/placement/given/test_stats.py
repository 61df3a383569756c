"""Routing files survive a round trip, and wrong ones are refused in one line."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.errors import InputError, RoutingFileError
from placement.given.stats import RoutingStats
from tests.placement.shapes import small_shape

SHAPE = small_shape()


def random_trace(num_tokens: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.int64]]:
    scores = np.random.default_rng(seed).random((num_tokens, SHAPE.num_moe_layers, SHAPE.num_experts))
    return np.argsort(scores, axis=2)[:, :, : SHAPE.top_k]


@pytest.mark.parametrize("keep_trace", [True, False])
def test_saved_statistics_load_as_they_were(tmp_path: Path, keep_trace: bool) -> None:
    stats = RoutingStats.from_trace(SHAPE, random_trace(50), "random text")
    if not keep_trace:
        stats = stats.without_trace()
    path = tmp_path / "routing.npz"
    stats.save(path)
    loaded = RoutingStats.load(path, SHAPE)
    assert np.array_equal(loaded.counts, stats.counts)
    assert loaded.counts.dtype == np.uint64
    assert (loaded.trace is None) is not keep_trace
    if keep_trace:
        assert loaded.trace is not None
        assert np.array_equal(loaded.trace, random_trace(50))
    for name in ("model", "fingerprint", "moe_layers", "top_k", "num_tokens", "source"):
        assert getattr(loaded, name) == getattr(stats, name)
    assert [p.name for p in tmp_path.iterdir()] == ["routing.npz"]


def test_frequencies_sum_to_top_k() -> None:
    stats = RoutingStats.from_trace(SHAPE, random_trace(50), "random text")
    assert np.allclose(stats.frequencies().sum(axis=1), SHAPE.top_k)


@given(first=st.integers(1, 40), second=st.integers(1, 40))
def test_merging_parts_equals_the_whole(first: int, second: int) -> None:
    trace = random_trace(first + second)
    parts = [RoutingStats.from_trace(SHAPE, part, "text") for part in (trace[:first], trace[first:])]
    whole = RoutingStats.from_trace(SHAPE, trace, "text")
    merged = parts[0].merge(parts[1])
    assert np.array_equal(merged.counts, whole.counts)
    assert merged.trace is not None
    assert whole.trace is not None
    assert np.array_equal(merged.trace, whole.trace)
    assert merged.num_tokens == whole.num_tokens
    assert merged.source == "text"


def test_merging_with_counts_alone_drops_the_trace() -> None:
    stats = RoutingStats.from_trace(SHAPE, random_trace(5), "a")
    merged = stats.merge(RoutingStats.from_counts(SHAPE, stats.counts, 5, "b"))
    assert merged.trace is None
    assert merged.source == "a; b"


def test_statistics_of_another_model_do_not_merge() -> None:
    other = RoutingStats.from_trace(small_shape(num_moe_layers=2), random_trace(5)[:, :2], "a")
    with pytest.raises(RoutingFileError, match="cannot merge"):
        RoutingStats.from_trace(SHAPE, random_trace(5), "a").merge(other)


def test_statistics_of_another_shape_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "routing.npz"
    RoutingStats.from_trace(SHAPE, random_trace(5), "a").save(path)
    with pytest.raises(
        RoutingFileError, match=r"routing.npz: made for 'small' \(3 x 10, top 2.*expected big"
    ):
        RoutingStats.load(path, small_shape(num_experts=12, name="big"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": np.full((3, 10), np.nan)}, "counts: expected whole numbers, found float64, with NaN"),
        ({"counts": np.ones((3, 10))}, "counts: expected whole numbers, found float64"),
        ({"counts": np.array([[-1] + [1] * 9] * 3)}, "no negative number, found -1"),
        ({"counts": np.ones((3, 9), dtype=np.uint64)}, r"expected shape \[3, 10\].*found \[3, 9\]"),
        ({"counts": np.ones((2, 10), dtype=np.uint64)}, r"expected shape \[3, 10\].*found \[2, 10\]"),
        ({"counts": np.ones(10, dtype=np.uint64)}, r"expected shape \[3, 10\].*found \[10\]"),
        ({"counts": np.array([[1] * 10, [0] * 10, [1] * 10])}, r"= 10, found 0 in row 1"),
        ({"counts": np.zeros((3, 10), dtype=int), "num_tokens": np.array(0)}, "at least one token"),
        ({"num_tokens": np.array(7)}, "tokens x top_k = 14, found 10 in row 0"),
        ({"num_tokens": np.array(-1)}, "num_tokens: expected one whole number"),
        ({"num_tokens": np.array(5.0)}, "num_tokens: expected one whole number"),
        ({"top_k": np.array(11)}, "top_k: expected 1 to 10"),
        ({"model": np.array(3)}, "model: expected text"),
        ({"moe_layers": np.array([3, 2, 1])}, "moe_layers: expected ascending"),
        ({"trace": np.zeros((5, 3, 3), dtype=np.uint16)}, r"trace: expected shape \[5, 3, 2\]"),
        ({"trace": np.full((5, 3, 2), 10, dtype=np.uint16)}, "trace: .*found 10"),
        ({"trace": np.zeros((5, 3, 2))}, "trace: expected whole numbers"),
        ({"trace": np.zeros((5, 3, 2), dtype=np.uint16)}, "does not add up to counts"),
        ({"version": np.array(2)}, "version: expected 1, found 2"),
        ({"format": np.array("other")}, "format: .*found 'other'"),
        ({"counts": None}, "expected an array 'counts', found fingerprint"),
    ],
)
def test_wrong_arrays_are_refused_by_name(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    stats = RoutingStats.from_counts(SHAPE, np.ones((3, 10), dtype=np.uint64), 5, "even")
    path = tmp_path / "routing.npz"
    stats.save(path)
    with np.load(path) as archive:
        arrays = {**archive, **change}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(RoutingFileError, match=message) as caught:
        RoutingStats.load(path, SHAPE)
    assert "routing.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "routing.npz"
    np.savez(path, counts=np.array([{"a": 1}], dtype=object))
    with pytest.raises(RoutingFileError, match="array 'counts': values of type 'object'"):
        RoutingStats.load(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"no archive"])
def test_a_broken_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "routing.npz"
    path.write_bytes(content)
    with pytest.raises(
        RoutingFileError, match=r"routing\.npz: not a readable zip archive: .*`potluck stats` writes"
    ):
        RoutingStats.load(path)


def test_an_expert_given_twice_to_a_token_is_refused(tmp_path: Path) -> None:
    tokens = np.arange(4)[:, None, None] + np.arange(SHAPE.top_k)
    trace = np.broadcast_to(tokens, (4, SHAPE.num_moe_layers, SHAPE.top_k)).copy()
    trace[2, 0, 1] = trace[2, 0, 0]
    path = tmp_path / "routing.npz"
    RoutingStats.from_trace(SHAPE, trace, "test").save(path)
    with pytest.raises(RoutingFileError, match="found expert 2 twice in token 2, MoE layer number 0"):
        RoutingStats.load(path, SHAPE)


def test_a_folder_is_refused_as_one(tmp_path: Path) -> None:
    with pytest.raises(RoutingFileError, match="it is a directory; expected a routing file"):
        RoutingStats.load(tmp_path)


def test_a_single_array_is_no_archive(tmp_path: Path) -> None:
    path = tmp_path / "routing.npy"
    np.save(path, np.ones(3))
    with pytest.raises(RoutingFileError, match=r"not a readable zip archive"):
        RoutingStats.load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RoutingFileError, match=r"nowhere.npz: No such file"):
        RoutingStats.load(tmp_path / "nowhere.npz")


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    stats = RoutingStats.from_trace(SHAPE, random_trace(5), "a")
    with pytest.raises(InputError, match="cannot write"):
        stats.save(tmp_path / "no such directory" / "routing.npz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("trace", "message"),
    [
        (np.zeros((5, 3), dtype=int), r"expected shape \[tokens, 3, 2\], found \[5, 3\]"),
        (np.full((5, 3, 2), 10), "expected experts up to 9, found 10"),
        (np.full((5, 3, 2), -1), "no negative number"),
        (np.zeros((5, 3, 2)), "whole numbers"),
    ],
)
def test_a_trace_with_experts_the_model_lacks_is_refused(trace: Any, message: str) -> None:
    with pytest.raises(RoutingFileError, match=message):
        RoutingStats.from_trace(SHAPE, trace, "text")


@pytest.mark.parametrize("most", [401, 2**63])
def test_an_expert_chosen_more_often_than_there_are_tokens_is_refused(most: int) -> None:
    """Two choices of 2**63 would sum to what is right, in 64 bits."""
    counts = np.zeros((SHAPE.num_moe_layers, SHAPE.num_experts), dtype=np.uint64)
    counts[:, 0] = most
    counts[:, 1] = most if most == 2**63 else 0
    counts[:, 2] = 400 * SHAPE.top_k - (0 if most == 2**63 else most)
    with pytest.raises(RoutingFileError, match="no expert to be chosen by more than the 400 tokens"):
        RoutingStats.from_counts(SHAPE, counts, 400, "test")


def test_counts_that_inflate_are_refused_before_they_do(tmp_path: Path) -> None:
    path = tmp_path / "routing.npz"
    even = np.full((SHAPE.num_moe_layers, SHAPE.num_experts), SHAPE.top_k)
    RoutingStats.from_counts(SHAPE, even, SHAPE.num_experts, "test").save(path)
    arrays = dict(np.load(path))
    np.savez_compressed(path, **(arrays | {"counts": np.zeros((20, 1_000_000))}))
    tracemalloc.start()
    try:
        with pytest.raises(RoutingFileError, match=r"arrays take 160\.\d MB, .*67\.1 MB"):
            RoutingStats.load(path)
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()
