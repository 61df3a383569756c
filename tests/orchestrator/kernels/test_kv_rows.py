"""What becomes of projected rows on their way into the cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from orchestrator import kernels
from orchestrator.kernels import AttentionHeads
from orchestrator.model.rope import RopeTable
from placement.kv_size import KvForm, KvShape
from tests.orchestrator.kernels.kv_pages import EPS, new_pages, one_sequence, sequence, stored
from workers.model_config import LayerConfig

SameBits = Callable[[Callable[[], tuple[Tensor, ...]]], None]
HEADS, KV_HEADS, DIM, ROTARY = 4, 2, 24, 16


@dataclass
class Written:
    """Rows from a position on, and the pages that their keys and values went into, zeros elsewhere."""

    qkv: Tensor
    qk_norm: Tensor
    outputs: Tensor
    pages: list[Tensor]
    kv: KvShape


def write(form: KvForm, position: int, rows: int, seed: int) -> Written:
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(rows, (HEADS + 2 * KV_HEADS) * DIM + 5, generator=generator) * 3
    qk_norm = torch.rand(HEADS + KV_HEADS, DIM, generator=generator) + 0.5
    layer = LayerConfig(0, True, HEADS, KV_HEADS, DIM, 1e4, ROTARY, None, False, 0.0, 0.0)
    kv = KvShape(form, KV_HEADS, DIM)
    pages, table = new_pages(kv, position + rows)
    heads = AttentionHeads(qk_norm, KV_HEADS, 0, DIM**-0.5, EPS, has_gate=False)
    rotation = RopeTable(layer).upto(position + rows)
    outputs = kernels.attention(qkv, heads, rotation, one_sequence(kv, table, position, rows), 0)
    return Written(qkv, qk_norm, outputs.view(rows, HEADS, DIM), pages, kv)


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
def test_keys_are_normed_and_rotated_and_values_kept(position: int) -> None:
    made = write(KvForm.float32, position, 7, seed=1)
    expected = rotated(made.qkv, made.qk_norm, position)
    keys, values = (part[position : position + 7] for part in stored(made.pages, made.kv))
    assert torch.allclose(keys, expected[:, HEADS:], rtol=1e-5, atol=2e-6)
    start = (HEADS + KV_HEADS) * DIM
    assert torch.equal(values.float(), made.qkv[:, start : start + KV_HEADS * DIM].view(7, KV_HEADS, DIM))


@pytest.mark.parametrize("position", [0, 125, 1000])
def test_queries_are_normed_and_rotated(position: int) -> None:
    made = write(KvForm.float32, position, 7, seed=1)
    queries = rotated(made.qkv, made.qk_norm, position)[:, :HEADS]
    k, v = (part[: position + 7, [0, 0, 1, 1]] for part in stored(made.pages, made.kv))
    for t, query in enumerate(queries):
        seen = slice(position + t + 1)
        weights = (torch.einsum("hd,khd->hk", query, k[seen]) * DIM**-0.5).softmax(1)
        assert torch.allclose(
            made.outputs[t].double(), torch.einsum("hk,khd->hd", weights, v[seen]), rtol=1e-5, atol=1e-5
        )


def pages_of_rows(form: KvForm) -> tuple[Tensor, Tensor]:
    made = write(form, 100, 60, seed=2)
    return stored(made.pages, made.kv)


def test_bfloat16_rounds_like_torch() -> None:
    wide = pages_of_rows(KvForm.float32)
    narrow = pages_of_rows(KvForm.bfloat16)
    for exact, rounded in zip(wide, narrow, strict=True):
        assert torch.equal(exact.float().bfloat16().double(), rounded)


def test_int8_divides_by_a_127th_of_the_largest_magnitude() -> None:
    wide = pages_of_rows(KvForm.float32)
    narrow = pages_of_rows(KvForm.int8)
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
    at_once, in_chunks = (sequence(300, 4, 2, 32, form, 6, chunk=chunk) for chunk in (None, 7))
    for one, other in zip(at_once.pages, in_chunks.pages, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("form", KvForm)
def test_rows_have_the_same_bits_everywhere(form: KvForm, same_bits_everywhere: SameBits) -> None:
    def call() -> tuple[Tensor, ...]:
        made = sequence(200, 6, 2, 48, form, seed=3)
        return (made.attend(0, 200, 0), *made.pages)

    same_bits_everywhere(call)
