"""Attention against a float64 softmax, and its independence of chunks, rows beside, threads and pages."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from orchestrator import kernels
from placement.kv_size import KvForm
from tests.orchestrator.kernels.kv_pages import sequence

SameBits = Callable[[Callable[[], tuple[Tensor, ...]]], None]
forms = st.sampled_from(KvForm)


@given(st.data())
def test_attention_is_close_to_float64(data: st.DataObject) -> None:
    kv_heads, group = data.draw(st.sampled_from([(1, 1), (2, 3), (1, 12), (3, 2), (2, 5), (1, 8), (1, 100)]))
    length = data.draw(st.one_of(st.integers(1, 40), st.integers(120, 300)))
    begin = data.draw(st.integers(max(0, length - 30), length - 1))
    window = data.draw(st.sampled_from([0, 1, 4, 9, 130]))
    dim = data.draw(st.sampled_from([1, 8, 16, 24, 64, 70, 128]))
    made = sequence(
        length, kv_heads * group, kv_heads, dim, data.draw(forms), data.draw(st.integers(0, 2**31))
    )
    found = made.attend(begin, length, window)
    assert torch.allclose(found.double(), made.exact(begin, length, window), rtol=1e-5, atol=2e-6)


def test_many_spans_are_close_to_float64() -> None:
    made = sequence(5000, 4, 1, 16, KvForm.bfloat16, seed=3)
    for window in (0, 3000):
        found = made.attend(4990, 5000, window)
        assert torch.allclose(found.double(), made.exact(4990, 5000, window), rtol=1e-5, atol=2e-6)


@given(st.integers(2, 300), st.sampled_from([0, 3, 8, 129]), forms, st.data())
def test_chunking_does_not_change_a_bit(length: int, window: int, form: KvForm, data: st.DataObject) -> None:
    made = sequence(length, 6, 2, 24, form, seed=length)
    whole = made.attend(0, length, window)
    begin = 0
    while begin < length:
        end = data.draw(st.integers(begin + 1, length))
        assert torch.equal(made.attend(begin, end, window), whole[begin:end])
        begin = end


@pytest.mark.parametrize("group", [1, 5, 8, 12])
def test_rows_beside_do_not_change_a_bit_across_pages_and_spans(group: int) -> None:
    made = sequence(2100, group, 1, 16, KvForm.bfloat16, seed=group)
    for window in (0, 512):
        whole = made.attend(900, 2100, window)
        for begin in (1020, 1023, 1024, 1151, 2045, 2047, 2090):
            for rows in (1, 2, 3, 4, 7):
                found = made.attend(begin, begin + rows, window)
                assert torch.equal(found, whole[begin - 900 : begin - 900 + rows])


@pytest.mark.parametrize("form", KvForm)
@pytest.mark.parametrize("window", [0, 1500])
def test_attention_has_the_same_bits_everywhere(
    window: int, form: KvForm, same_bits_everywhere: SameBits
) -> None:
    """Long enough that three threads split the keys."""
    made = sequence(2500, 10, 2, 72, form, seed=5)
    same_bits_everywhere(lambda: (made.attend(2490, 2500, window), made.attend(2499, 2500, window)))


def test_later_and_unwritten_positions_do_not_matter_even_where_they_are_not_numbers() -> None:
    qkv = torch.randn(140, 4 * 32, generator=torch.Generator().manual_seed(8))
    clean = sequence(140, 2, 1, 32, KvForm.float32, 0, qkv=qkv).attend(0, 140, 0)
    qkv[131:] = torch.nan
    found = sequence(140, 2, 1, 32, KvForm.float32, 0, qkv=qkv).attend(0, 140, 0)
    assert torch.equal(found[:131], clean[:131])
    assert found[131:].isnan().all()


def test_a_value_that_is_not_a_number_stays_in_the_window_of_its_rows() -> None:
    qkv = torch.randn(40, 3 * 16, generator=torch.Generator().manual_seed(9))
    qkv[10, 32:] = torch.inf
    found = sequence(40, 1, 1, 16, KvForm.int8, 0, qkv=qkv).attend(0, 40, 5)
    assert found.isnan().all(2)[:, 0].tolist() == [10 <= p < 15 for p in range(40)]


def values_alone(values: list[float], dim: int = 16) -> Tensor:
    """Projected rows of one head whose queries and keys are equal at all positions."""
    rows = torch.ones(len(values), 3 * dim)
    rows[:, 2 * dim :] = torch.tensor(values)[:, None]
    return rows


def test_equal_keys_average_the_values() -> None:
    made = sequence(3, 1, 1, 16, KvForm.float32, 0, qkv=values_alone([3.0, 6.0, 9.0]))
    assert made.attend(0, 3, 0)[:, 0, 0].tolist() == pytest.approx([3.0, 4.5, 6.0])
    assert made.attend(0, 3, 2)[:, 0, 0].tolist() == pytest.approx([3.0, 4.5, 7.5])


def test_large_scores_do_not_overflow() -> None:
    qkv = torch.ones(2, 48)
    qkv[0, 16:32] = 1e-4
    qkv[:, 32:] = torch.tensor([5.0, 7.0])[:, None]
    made = sequence(2, 1, 1, 16, KvForm.float32, 0, qkv=qkv, norm=1e15)
    assert made.attend(0, 2, 0)[:, 0, 0].tolist() == [5.0, 7.0]


def test_a_page_of_scores_that_overflowed_downwards_weighs_nothing() -> None:
    qkv = values_alone([5.0] * 128 + [7.0] * 12)
    qkv[:128, 16:32] = -1.0
    qkv[128:, 16:32] = 0.0
    made = sequence(140, 1, 1, 16, KvForm.float32, 0, qkv=qkv, norm=1e25)
    assert made.attend(139, 140, 0)[0, 0, 0] == pytest.approx(7.0)


def test_the_gate_multiplies_each_head() -> None:
    made = sequence(20, 4, 2, 16, KvForm.bfloat16, seed=2)
    logits = torch.randn(3, 9, generator=torch.Generator().manual_seed(4))
    found = kernels.attention(made.queries[17:], made.table, made.kv, 17, 0, 0.25, logits[:, 5:])
    factors = kernels.sigmoid(logits[:, 5:].contiguous()).unsqueeze(-1)
    assert torch.equal(found, made.attend(17, 20, 0) * factors)


def test_pages_that_are_not_held_are_refused() -> None:
    made = sequence(300, 2, 1, 16, KvForm.float32, seed=0)
    for missing, window in ((0, 0), (2, 100)):
        table = made.table.copy()
        table[missing] = 0
        with pytest.raises(ValueError, match=r"positions .* to 299 are needed"):
            kernels.attention(made.queries[299:], table, made.kv, 299, window, 0.25)
    with pytest.raises(ValueError, match="positions 0 to 299"):
        kernels.attention(made.queries[299:], np.zeros(2, np.int64), made.kv, 299, 0, 0.25)
