"""The cache: pages from a budget, the window of sliding layers, rollback that loses no key a query sees."""

from __future__ import annotations

import gc
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.model.kv_cache import KVCache
from orchestrator.model.kv_pool import KvPool
from placement.errors import KvDoesNotFit
from placement.kv_size import (
    HELD_BACK,
    MAX_DRAFTS,
    PAGE_POSITIONS,
    KvForm,
    KvShape,
    SequenceSize,
    pages_of,
    pass_grid,
)
from placement.model_shape import AttentionShape
from tests.examples import examples
from workers.model_config import LayerConfig

WINDOW = 150
PAGE_BYTES = KvShape(KvForm.float32, 1, 2).page_bytes
PLENTY = 10_000 * PAGE_BYTES


SHAPES = [AttentionShape(2, 1, 2, window, False) for window in (0, WINDOW)]


def layer(*, is_sliding: bool) -> LayerConfig:
    return LayerConfig(0, is_sliding, 2, 1, 2, 1e4, 2, None, False, 0.0, 0.0)


LAYERS = [layer(is_sliding=False), layer(is_sliding=True)]


def new_cache(pool: KvPool | None = None) -> KVCache:
    return KVCache(LAYERS, WINDOW, KvForm.float32, pool or KvPool(PLENTY))


def push(cache: KVCache, tokens: list[float]) -> None:
    """Write rows that hold their token's value in a float of their own."""
    cache.begin(len(tokens))
    for part in cache.layers:
        for position, token in enumerate(tokens, start=cache.length):
            page = part.pages[position // PAGE_POSITIONS]
            assert part.table[position // PAGE_POSITIONS] == page.data_ptr()
            page.view(torch.float32)[position % PAGE_POSITIONS] = token
    cache.commit(len(tokens))


def held(cache: KVCache, layer: int, position: int) -> float:
    page = cache.layers[layer].pages[position // PAGE_POSITIONS]
    return float(page.view(torch.float32)[position % PAGE_POSITIONS])


@examples(25)
@given(
    st.lists(
        st.tuples(st.integers(1, 300), st.integers(0, MAX_DRAFTS)).map(lambda pair: (pair[0], min(pair))),
        min_size=1,
        max_size=20,
    )
)
def test_a_query_finds_every_key_it_sees_after_any_chunks_and_rollbacks(
    chunks: list[tuple[int, int]],
) -> None:
    pool = KvPool(PLENTY)
    cache = new_cache(pool)
    expected: list[float] = []
    fresh = iter(range(1, 10_000))
    for size, rejected in chunks:
        tokens = [float(next(fresh)) for _ in range(size)]
        push(cache, tokens)
        expected += tokens
        assert cache.nbytes == pool.used_bytes
        expected = expected[: len(expected) - rejected]
        cache.rollback(len(expected))
        assert cache.length == len(expected)
        assert [held(cache, 0, p) for p in range(len(expected))] == expected
        seen = range(max(0, len(expected) - WINDOW + 1), len(expected))
        assert [held(cache, 1, p) for p in seen] == [expected[p] for p in seen]


@given(
    prompt=st.integers(1, 1500),
    pass_rows=st.sampled_from([1, 7, 100, 128, 200, 256, 300]),
    steps=st.lists(st.tuples(st.integers(1, 1 + MAX_DRAFTS), st.integers(0, MAX_DRAFTS)), max_size=60),
)
def test_a_run_takes_no_more_than_is_counted_and_a_prompt_alone_just_that(
    prompt: int, pass_rows: int, steps: list[tuple[int, int]]
) -> None:
    size, pool = SequenceSize(SHAPES, KvForm.float32), KvPool(PLENTY)
    cache, most = new_cache(pool), 0
    for start in range(0, prompt, pass_rows):
        push(cache, [0.0] * min(pass_rows, prompt - start))
    # Pages that a pass lets go of at its end were there in it.
    starts = range(0, prompt, pass_grid(pass_rows))
    passes = [(start, min(prompt, start + pass_rows)) for start in starts]
    for start, stop in passes:
        first = max(0, start - HELD_BACK - WINDOW + 1) // PAGE_POSITIONS
        most = max(most, pages_of(stop) - first)
    held = (pages_of(prompt) + most) * PAGE_BYTES
    assert held <= size.num_bytes(prompt, pass_rows)
    # The last steps of a text hold as much as passes of a prompt do, wherever they begin.
    assert pass_rows < 128 or held == size.num_bytes(prompt, pass_rows)
    longest = prompt
    for rows, rejected in steps:
        push(cache, [0.0] * rows)
        # A rollback keeps the pages that it leaves.
        longest = max(longest, cache.length)
        assert cache.nbytes <= size.num_bytes(longest, pass_rows)
        cache.rollback(cache.length - min(rows - 1, rejected))


def test_full_layers_grow_and_sliding_ones_keep_their_window() -> None:
    cache = new_cache()
    for step in range(1000):
        push(cache, [float(step)] * 4)
    full, sliding = cache.layers
    assert len(full.pages) == -(-4000 // PAGE_POSITIONS)
    assert len(sliding.pages) <= -(-(WINDOW + HELD_BACK) // PAGE_POSITIONS) + 1
    assert not sliding.table[: min(sliding.pages)].any()


def test_pages_come_back_with_the_cache_and_are_used_again() -> None:
    pool = KvPool(8 * PAGE_BYTES)
    for _ in range(5):
        cache = new_cache(pool)
        push(cache, [1.0] * 400)
        assert pool.used_bytes == (4 + 3) * PAGE_BYTES
        del cache
        gc.collect()
        assert pool.used_bytes == 0


def test_a_closed_cache_has_given_its_pages_back_and_takes_no_rows() -> None:
    pool = KvPool(PLENTY)
    cache = new_cache(pool)
    push(cache, [1.0] * 400)
    cache.close()
    assert pool.used_bytes == cache.nbytes == 0
    cache.close()
    with pytest.raises(ValueError, match="closed"):
        cache.begin(1)
    with pytest.raises(ValueError, match="never used"):
        cache.adopt(0, 0, [(), ()])


def test_a_page_that_two_sequences_hold_is_copied_before_either_writes_it() -> None:
    pool = KvPool(PLENTY)
    one, other = new_cache(pool), new_cache(pool)
    push(one, [float(p) for p in range(200)])
    other.adopt(200, 0, one.share(200))
    assert pool.used_bytes == one.nbytes == other.nbytes == 4 * PAGE_BYTES
    other.rollback(150)
    push(other, [-1.0, -2.0])
    assert pool.used_bytes == 6 * PAGE_BYTES
    push(one, [200.0])
    assert pool.used_bytes == 6 * PAGE_BYTES
    for at in (0, 1):
        assert [held(one, at, p) for p in range(100, 201)] == [float(p) for p in range(100, 201)]
        assert [held(other, at, p) for p in range(100, 152)] == [*map(float, range(100, 150)), -1.0, -2.0]
    # Alone again, it writes where it is.
    one.close()
    pages = dict(other.layers[0].pages)
    push(other, [-3.0])
    other.rollback(3)
    push(other, [3.0])
    assert other.layers[0].pages == pages
    other.close()
    assert pool.used_bytes == 0


def test_pages_are_given_back_and_let_go_once() -> None:
    shape = KvShape(KvForm.float32, 1, 2)
    pool = KvPool(PLENTY)
    page = pool.take(shape)
    assert page is not None
    with pytest.raises(ValueError, match="no kept prefix holds"):
        pool.let_go(shape, [page])
    pool.keep(shape, [page])
    pool.give_back(shape, [page])
    assert (pool.used_bytes, pool.kept_bytes, pool.held_bytes) == (0, PAGE_BYTES, PAGE_BYTES)
    with pytest.raises(ValueError, match="no sequence holds"):
        pool.give_back(shape, [page])
    pool.let_go(shape, [page])
    assert (pool.used_bytes, pool.kept_bytes, pool.held_bytes) == (0, 0, 0)
    with pytest.raises(ValueError, match="no kept prefix holds"):
        pool.let_go(shape, [page])


def test_a_kept_page_serves_where_a_new_one_cannot_be_made() -> None:
    shape = KvShape(KvForm.float32, 1, 2)
    made: list[torch.Tensor] = []

    def new_page(num_bytes: int) -> torch.Tensor:
        if made:
            raise MemoryError
        made.append(torch.zeros(num_bytes, dtype=torch.uint8))
        return made[-1]

    def make_room(pool: KvPool) -> bool:
        pool.let_go(shape, made)
        return True

    pool = KvPool(PLENTY, new_page)
    pool.make_room = make_room
    page = pool.take(shape)
    assert page is made[0]
    with pytest.raises(MemoryError):
        pool.take(shape)
    pool.keep(shape, made)
    pool.give_back(shape, made)
    assert pool.take(shape) is page
    assert (pool.used_bytes, pool.kept_bytes) == (PAGE_BYTES, 0)


def test_pages_that_cannot_be_made_count_for_nothing() -> None:
    made: list[torch.Tensor] = []

    def new_page(num_bytes: int) -> torch.Tensor:
        if len(made) == 3:
            raise MemoryError
        made.append(torch.zeros(num_bytes, dtype=torch.uint8))
        return made[-1]

    pool = KvPool(PLENTY, new_page)
    cache = new_cache(pool)
    with pytest.raises(MemoryError):
        cache.begin(3 * PAGE_POSITIONS)
    assert pool.used_bytes == cache.nbytes == 0
    push(cache, [1.0])
    assert pool.used_bytes == 2 * PAGE_BYTES


def test_free_pages_of_one_shape_make_room_for_another() -> None:
    small, large = KvShape(KvForm.int8, 1, 16), KvShape(KvForm.float32, 2, 16)
    pool = KvPool(large.page_bytes)
    pages = []
    while (page := pool.take(small)) is not None:
        pages.append(page)
    assert len(pages) == large.page_bytes // small.page_bytes
    assert pool.take(large) is None
    pool.give_back(small, pages)
    assert pool.take(large) is not None
    assert pool.take(small) is None


def test_more_positions_than_fit_are_refused_and_nothing_is_kept() -> None:
    pool = KvPool(7 * PAGE_BYTES)
    cache = new_cache(pool)
    push(cache, [1.0] * 200)
    before = cache.nbytes
    with pytest.raises(KvDoesNotFit, match=r"700 positions asked for.* so 384 positions fit"):
        cache.begin(500)
    assert cache.nbytes == before == pool.used_bytes
    cache.begin(184)


def test_the_refusal_before_a_run_says_how_many_positions_fit() -> None:
    shape = SequenceSize(SHAPES, KvForm.float32)
    budget = 20 * PAGE_BYTES
    fits = shape.most_positions(budget, 100)
    assert shape.num_bytes(fits, 100) <= budget < shape.num_bytes(fits + 1, 100)
    shape.check(fits, 100, budget)
    with pytest.raises(KvDoesNotFit, match=f"{fits} positions fit"):
        shape.check(fits + 1, 100, budget)
    assert shape.most_positions(0, 100) == 0


def test_rolling_back_past_what_sliding_layers_hold_is_refused() -> None:
    cache = new_cache()
    push(cache, [0.0] * 600)
    cache.rollback(600 - MAX_DRAFTS)
    with pytest.raises(ValueError, match="sliding layers hold positions from"):
        cache.rollback(400)


def test_full_layers_alone_roll_back_to_anywhere() -> None:
    cache = KVCache([layer(is_sliding=False)], WINDOW, KvForm.float32, KvPool(PLENTY))
    push(cache, [0.0] * 600)
    cache.rollback(3)
    assert cache.length == 3


def test_a_second_pass_after_an_unfinished_long_one_finds_its_window() -> None:
    cache = new_cache()
    tokens = [float(p) for p in range(400)]
    push(cache, tokens)
    cache.begin(500)
    push(cache, [400.0])
    assert [held(cache, 1, p) for p in range(401 - WINDOW, 401)] == [*tokens[401 - WINDOW :], 400.0]


@pytest.mark.parametrize("length", [-1, 21])
def test_rollback_only_goes_back(length: int) -> None:
    cache = new_cache()
    push(cache, [0.0] * 20)
    with pytest.raises(ValueError, match="cannot roll back"):
        cache.rollback(length)


@examples(40)
@given(st.lists(st.tuples(st.integers(1, 256), st.integers(0, MAX_DRAFTS)), min_size=1, max_size=12))
def test_a_prompt_cut_anyhow_takes_no_more_than_is_said(passes: list[tuple[int, int]]) -> None:
    pool = KvPool(PLENTY)
    cache = new_cache(pool)
    size = SequenceSize(SHAPES, KvForm.float32)
    most_positions = 0
    for rows, back in passes:
        most_positions = max(most_positions, cache.length + rows)
        cache.begin(rows)
        assert pool.used_bytes <= size.num_bytes_in_any_passes(most_positions, 256)
        cache.commit(rows)
        cache.rollback(max(0, cache.length - back))
    assert size.num_bytes(most_positions, 256) <= size.num_bytes_in_any_passes(most_positions, 256)


def test_a_cache_that_cannot_be_made_says_why_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    others: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", others.append)
    with pytest.raises(ValueError, match="shorter"):
        KVCache(LAYERS, WINDOW, KvForm.float32, [KvPool(PLENTY)])
    gc.collect()
    assert not others
