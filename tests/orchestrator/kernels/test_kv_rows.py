"""What becomes of projected rows on their way into the cache."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from orchestrator import kernels
from orchestrator.kernels.attention import PageTable
from orchestrator.model.rope import RopeTable
from placement.kv_size import PAGE_POSITIONS, KvForm, KvShape
from tests.orchestrator.kernels.kv_pages import EPS, sequence, stored
from workers.model_config import LayerConfig

SameBits = Callable[[Callable[[], tuple[Tensor, ...]]], None]
HEADS, KV_HEADS, DIM, ROTARY = 3, 2, 24, 16


def write(
    form: KvForm, position: int, rows: int, seed: int
) -> tuple[Tensor, Tensor, Tensor, list[Tensor], KvShape]:
    """Rows at a position; gives the rows, norms, queries and the pages."""
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(rows, (HEADS + 2 * KV_HEADS) * DIM + 5, generator=generator) * 3
    qk_norm = torch.rand(HEADS + KV_HEADS, DIM, generator=generator) + 0.5
    layer = LayerConfig(0, True, HEADS, KV_HEADS, DIM, 1e4, ROTARY, None, False, 0.0, 0.0)
    rope = RopeTable(layer).rows(position, position + rows)
    kv = KvShape(form, KV_HEADS, DIM)
    pages = [
        torch.zeros(kv.page_bytes, dtype=torch.uint8) for _ in range((position + rows) // PAGE_POSITIONS + 1)
    ]
    table: PageTable = np.array([page.data_ptr() for page in pages], np.int64)
    queries = kernels.kv_rows(qkv, qk_norm, EPS, rope.cos, rope.sin, rope.half, table, kv, position)
    return qkv, qk_norm, queries, pages, kv


def rotated(qkv: Tensor, qk_norm: Tensor, position: int) -> Tensor:
    """Queries and keys in float64, [rows, HEADS + KV_HEADS, DIM]."""
    x = qkv[:, : (HEADS + KV_HEADS) * DIM].reshape(len(qkv), -1, DIM).double()
    x = x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * qk_norm
    half = ROTARY // 2
    angles = (position + torch.arange(len(x)).double())[:, None] * 1e4 ** (
        -torch.arange(half).double() / half
    )
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    a, b = x[..., :half], x[..., half:ROTARY]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, x[..., ROTARY:]], -1)


@pytest.mark.parametrize("position", [0, 125, 1000])
def test_queries_and_keys_are_normed_and_rotated_and_values_kept(position: int) -> None:
    qkv, qk_norm, queries, pages, kv = write(KvForm.float32, position, 7, seed=1)
    expected = rotated(qkv, qk_norm, position)
    assert torch.allclose(queries.double(), expected[:, :HEADS], rtol=1e-5, atol=2e-6)
    keys, values = (part[position : position + 7] for part in stored(pages, kv))
    assert torch.allclose(keys, expected[:, HEADS:], rtol=1e-5, atol=2e-6)
    start = (HEADS + KV_HEADS) * DIM
    assert torch.equal(values.float(), qkv[:, start : start + KV_HEADS * DIM].view(7, KV_HEADS, DIM))


def test_bfloat16_rounds_like_torch() -> None:
    wide = stored(write(KvForm.float32, 100, 60, seed=2)[3], KvShape(KvForm.float32, KV_HEADS, DIM))
    narrow = stored(write(KvForm.bfloat16, 100, 60, seed=2)[3], KvShape(KvForm.bfloat16, KV_HEADS, DIM))
    for exact, rounded in zip(wide, narrow, strict=True):
        assert torch.equal(exact.float().bfloat16().double(), rounded)


def test_int8_divides_by_a_127th_of_the_largest_magnitude() -> None:
    wide = stored(write(KvForm.float32, 100, 60, seed=2)[3], KvShape(KvForm.float32, KV_HEADS, DIM))
    narrow = stored(write(KvForm.int8, 100, 60, seed=2)[3], KvShape(KvForm.int8, KV_HEADS, DIM))
    for exact, rounded in zip(wide, narrow, strict=True):
        scale = exact.float().abs().amax(-1, keepdim=True) / 127.0
        q = torch.nan_to_num(exact.float() / scale).round()
        assert torch.equal(q.double() * scale.double(), rounded)


@pytest.mark.parametrize(
    ("value", "kept"), [(0.0, 0.0), (1e-38, 0.0), (float("inf"), None), (float("nan"), None)]
)
def test_int8_rows_of_zeros_and_rows_that_are_not_finite(value: float, kept: float | None) -> None:
    qkv = torch.zeros(2, 48)
    qkv[0, 32:] = value
    _, values = stored(*(lambda made: (made.pages, made.kv))(sequence(2, 1, 1, 16, KvForm.int8, 0, qkv=qkv)))
    if kept is None:
        assert values[0].isnan().all()
    else:
        assert (values[0] == kept).all()
    assert (values[1] == 0).all()


@pytest.mark.parametrize("form", KvForm)
def test_rows_and_chunks_do_not_change_a_bit(form: KvForm) -> None:
    at_once, in_chunks = (sequence(300, 3, 2, 32, form, 6, chunk=chunk) for chunk in (None, 7))
    assert torch.equal(at_once.queries, in_chunks.queries)
    for one, other in zip(at_once.pages, in_chunks.pages, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("form", KvForm)
def test_rows_have_the_same_bits_everywhere(form: KvForm, same_bits_everywhere: SameBits) -> None:
    def call() -> tuple[Tensor, ...]:
        made = sequence(200, 6, 2, 48, form, seed=3)
        return (made.queries, *made.pages)

    same_bits_everywhere(call)


def test_shapes_that_do_not_fit_are_refused() -> None:
    made = sequence(3, 2, 1, 16, KvForm.float32, 0)
    still = torch.ones(3, 1, 16), torch.zeros(3, 1, 16)
    with pytest.raises(ValueError, match="kv_rows: shapes do not fit"):
        kernels.kv_rows(made.qkv[:, :40], made.qk_norm, EPS, *still, 8, made.table, made.kv, 0)
    with pytest.raises(ValueError, match="kv_rows: shapes do not fit"):
        kernels.kv_rows(made.qkv, made.qk_norm, EPS, *still, 9, made.table, made.kv, 0)
    with pytest.raises(ValueError, match="positions 126 to 128 are needed"):
        kernels.kv_rows(made.qkv, made.qk_norm, EPS, *still, 8, made.table, made.kv, 126)
