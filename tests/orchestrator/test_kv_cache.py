"""The cache: growth, the sliding ring, and rollback that loses no key a later query sees."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.model.kv_cache import BLOCK_TOKENS, KVCache
from workers.model_config import LayerConfig

WINDOW, MAX_DRAFTS = 5, 3


def layer(*, is_sliding: bool) -> LayerConfig:
    return LayerConfig(0, is_sliding, 2, 1, 2, 1e4, 2, None, False, 0.0, 0.0)


def new_cache() -> KVCache:
    return KVCache(
        [layer(is_sliding=False), layer(is_sliding=True)], WINDOW, torch.float32, max_drafts=MAX_DRAFTS
    )


def push(cache: KVCache, tokens: list[float]) -> None:
    """Write rows that hold their token's value."""
    rows = torch.tensor(tokens).view(-1, 1, 1).expand(-1, 1, 2).contiguous()
    cache.begin(len(tokens))
    for part in cache.layers:
        part.write(cache.length, rows, -rows)
    cache.commit(len(tokens))


def held(cache: KVCache, layer: int, position: int) -> float:
    part = cache.layers[layer]
    slot = position % part.keys.shape[0]
    assert part.values[slot, 0, 0] == -part.keys[slot, 0, 0]
    return float(part.keys[slot, 0, 0])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 30), st.integers(0, MAX_DRAFTS)).map(lambda pair: (pair[0], min(pair))),
        min_size=1,
        max_size=20,
    )
)
def test_a_query_finds_every_key_it_sees_after_any_chunks_and_rollbacks(
    chunks: list[tuple[int, int]],
) -> None:
    cache = new_cache()
    expected: list[float] = []
    fresh = iter(range(1, 10_000))
    for size, rejected in chunks:
        tokens = [float(next(fresh)) for _ in range(size)]
        push(cache, tokens)
        expected += tokens
        expected = expected[: len(expected) - rejected]
        cache.rollback(len(expected))
        assert cache.length == len(expected)
        assert [held(cache, 0, p) for p in range(len(expected))] == expected
        seen = range(max(0, len(expected) - WINDOW + 1), len(expected))
        assert [held(cache, 1, p) for p in seen] == [expected[p] for p in seen]


def test_full_layers_grow_by_blocks_and_rings_do_not() -> None:
    cache = new_cache()
    push(cache, [1.0] * (BLOCK_TOKENS + 1))
    assert cache.layers[0].keys.shape[0] % BLOCK_TOKENS == 0
    assert cache.layers[0].keys.shape[0] > BLOCK_TOKENS
    assert cache.layers[1].keys.shape[0] == WINDOW + MAX_DRAFTS + 1


def test_growth_copies_each_token_a_bounded_number_of_times() -> None:
    cache = new_cache()
    copied = 0
    for _ in range(40 * BLOCK_TOKENS):
        before = cache.layers[0].keys
        push(cache, [1.0])
        if cache.layers[0].keys is not before:
            copied += before.shape[0]
    assert copied <= 3 * cache.length


def test_rolling_back_past_what_a_ring_holds_is_refused() -> None:
    cache = new_cache()
    push(cache, [float(p) for p in range(20)])
    with pytest.raises(ValueError, match="no longer holds position"):
        cache.rollback(20 - MAX_DRAFTS - 3)


def test_a_second_pass_after_an_unfinished_long_one_is_refused() -> None:
    cache = new_cache()
    push(cache, [float(p) for p in range(20)])
    cache.begin(10)
    with pytest.raises(ValueError, match="no longer holds position"):
        cache.begin(1)


@pytest.mark.parametrize("length", [-1, 21])
def test_rollback_only_goes_back(length: int) -> None:
    cache = new_cache()
    push(cache, [0.0] * 20)
    with pytest.raises(ValueError, match="cannot roll back"):
        cache.rollback(length)


def test_bytes_reserved() -> None:
    cache = new_cache()
    ring = WINDOW + MAX_DRAFTS + 1
    assert cache.nbytes == (BLOCK_TOKENS + ring) * 2 * 2 * 4
