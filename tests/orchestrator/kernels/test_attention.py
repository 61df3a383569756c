"""Attention against a float64 softmax, and its independence of where keys come from."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from orchestrator import kernels

SameBits = Callable[[Callable[[], tuple[Tensor, ...]]], None]
small = settings(deadline=None, max_examples=40)


class Sequence:
    """Random queries, keys and values of a whole sequence, and its cache up to some position."""

    def __init__(
        self, length: int, heads: int, kv_heads: int, dim: int, seed: int, dtype: torch.dtype = torch.float32
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.q = torch.randn(length, heads, dim, generator=generator)
        self.k = torch.randn(length, kv_heads, dim, generator=generator).to(dtype)
        self.v = torch.randn(length, kv_heads, dim, generator=generator).to(dtype)
        self.scale = dim**-0.5

    def attend(self, begin: int, end: int, window: int, slots: int) -> Tensor:
        """Rows begin to end - 1, with earlier keys in a ring of `slots`."""
        cached_k = torch.full((slots, *self.k.shape[1:]), torch.nan, dtype=self.k.dtype)
        cached_v = cached_k.clone()
        for position in range(begin):
            cached_k[position % slots] = self.k[position]
            cached_v[position % slots] = self.v[position]
        new = slice(begin, end)
        return kernels.attention(
            self.q[new], self.k[new], self.v[new], cached_k, cached_v, begin, window, self.scale
        )

    def exact(self, begin: int, end: int, window: int) -> Tensor:
        """The same in float64."""
        group = self.q.shape[1] // self.k.shape[1]
        k, v = self.k.double().repeat_interleave(group, 1), self.v.double().repeat_interleave(group, 1)
        rows = []
        for position in range(begin, end):
            seen = slice(max(0, position + 1 - window) if window else 0, position + 1)
            scores = torch.einsum("hd,khd->hk", self.q[position].double(), k[seen]) * self.scale
            rows.append(torch.einsum("hk,khd->hd", scores.softmax(1), v[seen]))
        return torch.stack(rows)


@small
@given(st.data())
def test_attention_is_close_to_float64(data: st.DataObject) -> None:
    kv_heads, group = data.draw(st.sampled_from([(1, 1), (2, 3), (1, 12), (3, 2), (2, 5)]))
    length = data.draw(st.integers(1, 40))
    begin = data.draw(st.integers(0, length - 1))
    window = data.draw(st.sampled_from([0, 1, 4, 9]))
    dim = data.draw(st.sampled_from([1, 8, 16, 24, 64, 70]))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    least = max(1, min(begin, window - 1) if window else begin)
    slots = data.draw(st.integers(least, least + 5))
    sequence = Sequence(length, kv_heads * group, kv_heads, dim, data.draw(st.integers(0, 2**31)), dtype)
    found = sequence.attend(begin, length, window, slots)
    assert torch.allclose(found.double(), sequence.exact(begin, length, window), rtol=1e-5, atol=2e-6)


@small
@given(st.integers(2, 45), st.sampled_from([0, 3, 8]), st.data())
def test_chunking_does_not_change_a_bit(length: int, window: int, data: st.DataObject) -> None:
    sequence = Sequence(length, 6, 2, 24, seed=length)
    whole = sequence.attend(0, length, window, slots=1)
    slots = window + 3 if window else length
    begin = 0
    while begin < length:
        end = data.draw(st.integers(begin + 1, length))
        assert torch.equal(sequence.attend(begin, end, window, slots), whole[begin:end])
        begin = end


def test_equal_keys_average_the_values() -> None:
    q, k = torch.ones(3, 1, 4), torch.ones(3, 1, 4)
    v = torch.tensor([3.0, 6.0, 9.0]).reshape(3, 1, 1).expand(3, 1, 4).contiguous()
    nothing = torch.zeros(1, 1, 4)
    full = kernels.attention(q, k, v, nothing, nothing, 0, 0, 1.0)
    assert full[:, 0, 0].tolist() == [3.0, 4.5, 6.0]
    window = kernels.attention(q, k, v, nothing, nothing, 0, 2, 1.0)
    assert window[:, 0, 0].tolist() == [3.0, 4.5, 7.5]


def test_large_scores_do_not_overflow() -> None:
    q = torch.full((2, 1, 4), 1e4)
    k = torch.tensor([1.0, 2.0]).reshape(2, 1, 1).expand(2, 1, 4).contiguous()
    v = torch.tensor([5.0, 7.0]).reshape(2, 1, 1).expand(2, 1, 4).contiguous()
    nothing = torch.zeros(1, 1, 4)
    assert kernels.attention(q, k, v, nothing, nothing, 0, 0, 1.0)[:, 0, 0].tolist() == [5.0, 7.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [0, 200])
def test_attention_has_the_same_bits_everywhere(
    window: int, dtype: torch.dtype, same_bits_everywhere: SameBits
) -> None:
    sequence = Sequence(330, 10, 2, 72, seed=5, dtype=dtype)
    same_bits_everywhere(lambda: (sequence.attend(310, 330, window, slots=window + 3 if window else 320),))


def test_a_cache_too_small_for_the_keys_needed_is_refused() -> None:
    sequence = Sequence(10, 2, 1, 8, seed=0)
    with pytest.raises(ValueError, match="9 earlier keys are needed, the cache has 8 slots"):
        sequence.attend(9, 10, 0, slots=8)
