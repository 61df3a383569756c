"""Pages of keys and values, filled by the kernels and read by docs/attention.md's layout."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orchestrator import kernels
from orchestrator.kernels import AttentionHeads, PassRows, Rotation, SequenceRows
from placement.kv_size import PAGE_POSITIONS, KvForm, KvShape, pages_of

EPS = 1e-6


def stored(pages: list[Tensor], kv: KvShape) -> tuple[Tensor, Tensor]:
    """Keys and values of all positions of the pages, float64 [positions, kv_heads, head_dim]."""
    keys, values = zip(*(_stored_page(page, kv) for page in pages), strict=True)
    return torch.cat(keys), torch.cat(values)


def _stored_page(page: Tensor, kv: KvShape) -> tuple[Tensor, Tensor]:
    width = -(-kv.head_dim // 16) * 16
    dtype = {KvForm.float32: torch.float32, KvForm.bfloat16: torch.bfloat16, KvForm.int8: torch.int8}[kv.form]
    heads = page.view(kv.num_kv_heads, -1)
    num_bytes = PAGE_POSITIONS * width * dtype.itemsize
    keys = heads[:, :num_bytes].contiguous().view(dtype)
    values = heads[:, num_bytes : 2 * num_bytes].contiguous().view(dtype)
    keys = _panels(keys.view(-1, PAGE_POSITIONS // 16, width * 16)).double()  # [heads, panel, dim, position]
    keys = keys.permute(0, 1, 3, 2).reshape(-1, PAGE_POSITIONS, width)
    values = _panels(
        values.view(-1, width // 16, PAGE_POSITIONS * 16)
    ).double()  # [heads, panel, position, dim]
    values = values.permute(0, 2, 1, 3).reshape(-1, PAGE_POSITIONS, width)
    if kv.form is KvForm.int8:
        scales = heads[:, 2 * num_bytes :].contiguous().view(torch.float32).view(-1, 2, PAGE_POSITIONS, 1)
        keys, values = keys * scales[:, 0].double(), values * scales[:, 1].double()
    return tuple(part.transpose(0, 1)[:, :, : kv.head_dim] for part in (keys, values))  # type: ignore[return-value]


def _panels(data: Tensor) -> Tensor:
    """[heads, panels, rows * 16] -> [heads, panels, rows, 16 columns]; bfloat16 interleaves pairs of rows."""
    heads, panels, _ = data.shape
    if data.dtype is torch.bfloat16:
        return data.view(heads, panels, -1, 16, 2).transpose(3, 4).reshape(heads, panels, -1, 16)
    return data.view(heads, panels, -1, 16)


def still(positions: int, dim: int) -> Rotation:
    """Of rows that do not rotate."""
    return Rotation(torch.ones(positions, 1, dim), torch.zeros(positions, 1, dim), dim // 2)


def new_pages(kv: KvShape, positions: int) -> tuple[list[Tensor], NDArray[np.int64]]:
    """Pages and their table.

    They begin with bytes of 0xff where a head's width is whole panels: not a number in any float form.
    """
    fill = 0xFF if kv.head_dim % 16 == 0 else 0
    pages = [torch.full((kv.page_bytes,), fill, dtype=torch.uint8) for _ in range(pages_of(positions))]
    return pages, np.array([page.data_ptr() for page in pages], np.int64)


def one_sequence(kv: KvShape, table: NDArray[np.int64], position: int, count: int) -> PassRows:
    """A pass of one layer with rows of one sequence."""
    return PassRows((kv,), [SequenceRows(table[None], position, count)])


def normed(x: Tensor, qk_norm: Tensor, rotation: Rotation, position: int) -> Tensor:
    """Rows of heads as the kernels norm and rotate keys, which is what becomes of queries too.

    Args:
        x: [rows, heads * head_dim], from `position` on.
        qk_norm: [heads, head_dim].
    """
    heads, dim = qk_norm.shape
    kv = KvShape(KvForm.float32, heads, dim)
    pages, table = new_pages(kv, position + len(x))
    as_keys = AttentionHeads(torch.cat([qk_norm, qk_norm]), heads, 1, 1.0, EPS, has_gate=False)
    kernels.attention(
        torch.cat([x, x, x], 1), as_keys, rotation, one_sequence(kv, table, position, len(x)), 0
    )
    return stored(pages, kv)[0][position : position + len(x)].float()


@dataclass
class Sequence:
    """Random projected rows of a sequence, which do not rotate, and the pages that they went into."""

    qkv: Tensor
    kv: KvShape
    pages: list[Tensor]
    table: NDArray[np.int64]
    qk_norm: Tensor

    @property
    def length(self) -> int:
        return self.qkv.shape[0]

    def heads(self, window: int, *, has_gate: bool = False) -> AttentionHeads:
        dim = self.kv.head_dim
        return AttentionHeads(self.qk_norm, self.kv.num_kv_heads, window, dim**-0.5, EPS, has_gate)

    def attend(self, begin: int, end: int, window: int, *, has_gate: bool = False) -> Tensor:
        """[rows, heads, head_dim] of these rows, whose keys and values are written again."""
        heads = self.heads(window, has_gate=has_gate)
        rows = one_sequence(self.kv, self.table, begin, end - begin)
        found = kernels.attention(self.qkv[begin:end], heads, still(end, self.kv.head_dim), rows, 0)
        return found.view(end - begin, heads.num_heads, heads.head_dim)

    def exact(self, begin: int, end: int, window: int) -> Tensor:
        """The same in float64, from the pages as they are."""
        heads = self.heads(window)
        of_queries = slice(heads.num_heads * heads.head_dim)
        rotation = still(self.length, heads.head_dim)
        queries = normed(self.qkv[:, of_queries], self.qk_norm[: heads.num_heads], rotation, 0)
        group = heads.num_heads // self.kv.num_kv_heads
        k, v = (part[: self.length].repeat_interleave(group, 1) for part in stored(self.pages, self.kv))
        rows = []
        for position in range(begin, end):
            seen = slice(max(0, position + 1 - window) if window else 0, position + 1)
            scores = torch.einsum("hd,khd->hk", queries[position].double(), k[seen])
            weights = (scores * self.kv.head_dim**-0.5).softmax(1)
            rows.append(torch.einsum("hk,khd->hd", weights, v[seen]))
        return torch.stack(rows)


def sequence(
    length: int,
    heads: int,
    kv_heads: int,
    dim: int,
    form: KvForm,
    seed: int,
    *,
    chunk: int | None = None,
    qkv: Tensor | None = None,
    norm: float = 1.0,
) -> Sequence:
    """A sequence written in chunks."""
    kv = KvShape(form, kv_heads, dim)
    if qkv is None:
        qkv = torch.randn(length, (heads + 2 * kv_heads) * dim, generator=torch.Generator().manual_seed(seed))
    made = Sequence(qkv, kv, *new_pages(kv, length), torch.full((heads + kv_heads, dim), norm))
    for start in range(0, length, chunk or length):
        made.attend(start, min(length, start + (chunk or length)), 1)
    return made
