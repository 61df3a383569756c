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
from orchestrator.kernels import AttentionHeads, PassRows, Rotation, SequenceRows
from placement.kv_size import KvForm, KvShape
from tests.orchestrator.kernels.kv_pages import EPS, one_sequence, sequence, still

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
    qkv = torch.randn(20, 8 * 16 + 4, generator=torch.Generator().manual_seed(4))
    made = sequence(20, 4, 2, 16, KvForm.bfloat16, 0, qkv=qkv)
    factors = kernels.sigmoid(qkv[17:, 8 * 16 :].contiguous()).unsqueeze(-1)
    assert torch.equal(made.attend(17, 20, 0, has_gate=True), made.attend(17, 20, 0) * factors)


def test_pages_that_are_not_held_are_refused() -> None:
    made = sequence(300, 2, 1, 16, KvForm.float32, seed=0)
    held = made.table.copy()
    for missing, window in ((0, 0), (1, 0), (1, 100), (2, 100)):
        made.table = held.copy()
        made.table[missing] = 0
        with pytest.raises(ValueError, match=r"positions .* to 299 are needed, .* not all held"):
            made.attend(299, 300, window)
        before = made.pages[2].clone()
        with pytest.raises(ValueError, match=r"positions .* to 299 are needed, .* not all held"):
            made.attend(256, 300, window)
        assert torch.equal(made.pages[2], before)


def test_tables_and_positions_that_do_not_fit_are_refused() -> None:
    kv, table = KvShape(KvForm.float32, 1, 16), np.zeros((1, 2), np.int64)
    for position, count in ((-1, 1), (0, 0), (0, 257), (256, 1), (2**63, 1)):
        with pytest.raises(ValueError, match=f"positions {position} to {position + count - 1} are needed"):
            PassRows((kv,), [SequenceRows(table, position, count)])
    with pytest.raises(ValueError, match="page tables of 1 layers, expected 2"):
        PassRows((kv, kv), [SequenceRows(table, 0, 1)])
    for wrong in (table.astype(np.int32), np.zeros((1, 4), np.int64)[:, ::2]):
        with pytest.raises(ValueError, match="expected a contiguous int64 array"):
            PassRows((kv,), [SequenceRows(wrong, 0, 1)])


def test_shapes_that_do_not_fit_are_refused() -> None:
    made = sequence(3, 2, 1, 16, KvForm.float32, 0)
    rows, heads, rotation = one_sequence(made.kv, made.table, 0, 3), made.heads(0), still(3, 16)
    kernels.attention(made.qkv, heads, rotation, rows, 0)
    with_gate, narrow = made.heads(0, has_gate=True), made.qkv[:, :63].contiguous()
    others = [KvShape(KvForm.float32, 2, 16), KvShape(KvForm.float32, 1, 8)]
    for call in (
        (narrow, heads, rotation, rows),
        (made.qkv, with_gate, rotation, rows),
        (made.qkv[:2], heads, rotation, rows),
        (made.qkv, heads, still(2, 16), rows),
        (made.qkv, heads, still(3, 24), rows),
        *((made.qkv, heads, rotation, one_sequence(kv, made.table, 0, 3)) for kv in others),
    ):
        with pytest.raises(ValueError, match="attention: shapes do not fit"):
            kernels.attention(*call, 0)
    for layer in (-1, 1):
        with pytest.raises(ValueError, match=f"layer {layer} of 1"):
            kernels.attention(made.qkv, heads, rotation, rows, layer)
    with pytest.raises(ValueError, match="expected a contiguous"):
        kernels.attention(made.qkv.double(), heads, rotation, rows, 0)


@pytest.mark.parametrize(("num_heads", "kv_heads", "window"), [(3, 2, 0), (0, 2, 0), (2, 0, 0), (2, 1, -1)])
def test_heads_that_do_not_fit_are_refused(num_heads: int, kv_heads: int, window: int) -> None:
    with pytest.raises(ValueError, match=f"attention: {num_heads} heads, {kv_heads} of keys and values"):
        AttentionHeads(torch.ones(num_heads + kv_heads, 16), kv_heads, window, 1.0, EPS, has_gate=False)


def test_rotations_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="rotation: shapes do not fit"):
        Rotation(torch.ones(2, 1, 16), torch.ones(3, 1, 16), 8)
    with pytest.raises(ValueError, match="rotation: shapes do not fit"):
        Rotation(torch.ones(2, 2, 16), torch.ones(2, 2, 16), 8)
    for half in (-1, 9):
        with pytest.raises(ValueError, match=f"rotation: {half} pairs of 16 dimensions"):
            Rotation(torch.ones(2, 1, 16), torch.ones(2, 1, 16), half)
