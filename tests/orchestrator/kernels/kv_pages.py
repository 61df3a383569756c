"""Pages of keys and values, filled by the kernels and read by docs/attention.md's layout."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from orchestrator import kernels
from placement.kv_size import PAGE_POSITIONS, KvForm, KvShape

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


@dataclass
class Sequence:
    """Random projected rows of a sequence, the pages they went into and the queries that came out.

    The pages begin with bytes of 0xff where a head's width is whole panels: not a number in any float form.
    """

    qkv: Tensor
    kv: KvShape
    pages: list[Tensor]
    table: np.ndarray[tuple[int], np.dtype[np.int64]]
    queries: Tensor
    qk_norm: Tensor

    @property
    def length(self) -> int:
        return self.qkv.shape[0]

    def attend(self, begin: int, end: int, window: int) -> Tensor:
        scale = self.kv.head_dim**-0.5
        return kernels.attention(self.queries[begin:end], self.table, self.kv, begin, window, scale)

    def exact(self, begin: int, end: int, window: int) -> Tensor:
        """The same in float64, from the pages as they are."""
        group = self.queries.shape[1] // self.kv.num_kv_heads
        k, v = (part[: self.length].repeat_interleave(group, 1) for part in stored(self.pages, self.kv))
        rows = []
        for position in range(begin, end):
            seen = slice(max(0, position + 1 - window) if window else 0, position + 1)
            scores = torch.einsum("hd,khd->hk", self.queries[position].double(), k[seen])
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
    """A sequence whose rows do not rotate, written in chunks."""
    kv = KvShape(form, kv_heads, dim)
    if qkv is None:
        qkv = torch.randn(length, (heads + 2 * kv_heads) * dim, generator=torch.Generator().manual_seed(seed))
    fill = 0xFF if dim % 16 == 0 else 0
    num_pages = -(-length // PAGE_POSITIONS)
    pages = [torch.full((kv.page_bytes,), fill, dtype=torch.uint8) for _ in range(num_pages)]
    table = np.array([page.data_ptr() for page in pages], np.int64)
    qk_norm = torch.full((heads + kv_heads, dim), norm)
    queries = []
    for start in range(0, length, chunk or length):
        rows = qkv[start : start + (chunk or length)]
        still = torch.ones(len(rows), 1, dim), torch.zeros(len(rows), 1, dim)
        queries.append(kernels.kv_rows(rows, qk_norm, EPS, *still, dim // 2, table, kv, start))
    return Sequence(qkv, kv, pages, table, torch.cat(queries), qk_norm)
