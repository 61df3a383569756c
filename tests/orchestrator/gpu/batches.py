"""Random batches of sequences whose keys and values lie on a card and, for the CPU kernels, here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orchestrator import kernels
from orchestrator.gpu.attention import Workspace, attention
from orchestrator.gpu.kv_rows import RowPlaces, kv_rows
from orchestrator.kernels import AttentionHeads, PassRows, SequenceRows
from orchestrator.model.rope import RopeTable
from placement.kv_size import KvShape, pages_of
from tests.orchestrator.gpu.on_card import OnCard, assert_same_bits
from tests.orchestrator.kernels.kv_pages import EPS, normed
from workers.model_config import LayerConfig


@dataclass(frozen=True)
class Layer:
    """One layer's shape. `scale`: of what is projected."""

    kv: KvShape
    heads: int
    rotary: int
    window: int = 0
    gates: bool = True
    scale: float = 1.0

    @property
    def dim(self) -> int:
        return self.kv.head_dim

    @property
    def qkv_width(self) -> int:
        return (self.heads + 2 * self.kv.num_kv_heads) * self.dim


@dataclass
class Batch:
    """New rows of sequences, after `before[i]` positions each that pages have already.

    Where the CPU kernels want no zeros, pages begin with bytes of 0xff: not a number in any float form.
    """

    layer: Layer
    before: list[int]
    rows: list[int]
    seed: int
    not_finite: float = 0.0
    random: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        layer = self.layer
        self.qk_norm = self._numbers(layer.heads + layer.kv.num_kv_heads, layer.dim)
        config = LayerConfig(
            0, True, layer.heads, layer.kv.num_kv_heads, layer.dim, 1e4, layer.rotary, None, False, 0.0, 0.0
        )
        self.rope = RopeTable(config)
        self.pages: list[list[Tensor]] = []
        self.qkv: list[Tensor] = []
        for before, rows in zip(self.before, self.rows, strict=True):
            fill = 0xFF if layer.dim % 16 == 0 else 0
            self.pages.append(
                [
                    torch.full((layer.kv.page_bytes,), fill, dtype=torch.uint8)
                    for _ in range(pages_of(before + rows))
                ]
            )
            if before:
                # With the shortest window, as only the pages count.
                alone, heads = self._rows([(len(self.pages) - 1, 0, before)]), self._heads(1, gates=False)
                kernels.attention(self._projected(before), heads, self.rope.upto(before), alone, 0)
            self.qkv.append(self._projected(rows))

    @property
    def num_rows(self) -> int:
        return sum(self.rows)

    def _numbers(self, *shape: int) -> Tensor:
        return torch.from_numpy(self.random.standard_normal(shape, np.float32))

    def _projected(self, rows: int) -> Tensor:
        x = self._numbers(rows, self.layer.qkv_width + self.layer.heads) * self.layer.scale
        bad = torch.from_numpy(self.random.random(rows) < self.not_finite)
        x[bad, self.random.integers(self.layer.qkv_width)] = float(
            self.random.choice([np.inf, np.nan, -np.inf])
        )
        return x

    def _heads(self, window: int, *, gates: bool) -> AttentionHeads:
        layer = self.layer
        return AttentionHeads(self.qk_norm, layer.kv.num_kv_heads, window, layer.dim**-0.5, EPS, gates)

    def _rows(self, parts: list[tuple[int, int, int]]) -> PassRows:
        """`parts`: a sequence, a position and a number of rows each."""
        tables = [np.array([[page.data_ptr() for page in self.pages[i]]], np.int64) for i, _, _ in parts]
        rows = [SequenceRows(table, *part[1:]) for table, part in zip(tables, parts, strict=True)]
        return PassRows((self.layer.kv,), rows)

    def attend_here(self) -> Tensor:
        """All new rows, written and attended with by the CPU kernels: [rows, heads, head_dim]."""
        rows = self._rows(list(zip(range(len(self.rows)), self.before, self.rows, strict=True)))
        heads = self._heads(self.layer.window, gates=self.layer.gates)
        found = kernels.attention(torch.cat(self.qkv), heads, self.rope.upto(rows.stop), rows, 0)
        return found.view(-1, self.layer.heads, self.layer.dim)

    def queries_here(self) -> Tensor:
        """Of all new rows, normed and rotated by the CPU kernels: [rows, heads, head_dim]."""
        layer, rotation = self.layer, self.rope.upto(max(map(sum, zip(self.before, self.rows, strict=True))))
        of_queries, norm = slice(layer.heads * layer.dim), self.qk_norm[: layer.heads]
        return torch.cat(
            [
                normed(qkv[:, of_queries], norm, rotation, before)
                for before, qkv in zip(self.before, self.qkv, strict=True)
            ]
        )

    def check(self, on_card: OnCard, *, absent: int = 0) -> None:
        """Write the new rows and attend, on the card and here, and compare all bits.

        Args:
            absent: rows to add that are not there, one after each of the first sequences' rows.
        """
        layer, kv = self.layer, self.layer.kv
        copies = [on_card.put(torch.stack(pages)) for pages in self.pages]
        stride = max(map(len, self.pages)) + 1
        table = np.zeros((len(copies), stride), np.int64)
        for i, (copy, pages) in enumerate(zip(copies, self.pages, strict=True)):
            table[i, : len(pages)] = copy + kv.page_bytes * np.arange(len(pages))
        sequences, positions, fused, there = [], [], [], []
        for i, (before, rows) in enumerate(zip(self.before, self.rows, strict=True)):
            missing = i < absent
            sequences += [i] * (rows + missing)
            positions += [*range(before, before + rows), *[-1] * missing]
            there += [True] * rows + [False] * missing
            fused.append(torch.nn.functional.pad(self.qkv[i], (0, 0, 0, int(missing))))
        num_rows = len(sequences)
        qkv = torch.cat(fused)
        at = np.maximum(positions, 0)
        rope = self.rope.rows(0, int(at.max()) + 1)
        places = RowPlaces(
            on_card.put(table), stride, on_card.put(np.int32(sequences)), on_card.put(np.int32(positions))
        )
        qkv_there = on_card.put(qkv)
        queries = on_card.put(np.zeros((num_rows, layer.heads, layer.dim), np.float32))
        kv_rows(
            on_card.stream,
            num_rows,
            places,
            kv,
            layer.heads,
            qkv=qkv_there,
            qkv_stride=qkv.shape[1],
            qk_norm=on_card.put(self.qk_norm),
            eps=EPS,
            cos=on_card.put(rope.cos[at]),
            sin=on_card.put(rope.sin[at]),
            rotary_half=layer.rotary // 2,
            queries=queries,
        )
        scale = layer.dim**-0.5
        shape = (num_rows, layer.heads, layer.dim)
        outs = []
        parts = Workspace.parts_of(max(positions) + 1, layer.window)
        workspace = on_card.room(Workspace.num_bytes(num_rows, layer.heads, layer.dim, parts), item_bytes=1)
        for given in (None, Workspace(workspace, parts)):
            outs.append(on_card.room(*shape))
            attention(
                on_card.stream,
                num_rows,
                places,
                kv,
                layer.heads,
                queries=queries,
                out=outs[-1],
                window=layer.window,
                scale=scale,
                gate=qkv_there + 4 * layer.qkv_width if layer.gates else 0,
                gate_stride=qkv.shape[1],
                workspace=given,
            )
        expected = self.attend_here()
        for copy, pages in zip(copies, self.pages, strict=True):
            found = on_card.get(copy, (len(pages), kv.page_bytes), np.uint8)
            self._assert_same_pages(found, torch.stack(pages).numpy())
        assert_same_bits(on_card.get(queries, shape)[there], self.queries_here())
        for out in outs:
            found = on_card.get(out, shape)
            assert_same_bits(found[there], expected)
            assert not found[np.logical_not(there)].any()

    def _assert_same_pages(self, found: NDArray[Any], expected: NDArray[Any]) -> None:
        if self.layer.kv.form == "bfloat16":
            np.testing.assert_array_equal(found, expected)
            return
        # Numbers in float32, scales too, may be any NaN; four of int8 that look like one may not.
        a, b = found.view(np.float32), expected.view(np.float32)
        same = (a.view(np.uint32) == b.view(np.uint32)) | (np.isnan(a) & np.isnan(b))
        if self.layer.kv.form == "int8":
            heads = (*a.shape[:1], self.layer.kv.num_kv_heads, -1)
            same = same.reshape(heads)
            numbers = same.shape[2] - 256
            same[..., :numbers] = (a.view(np.uint32) == b.view(np.uint32)).reshape(heads)[..., :numbers]
        assert same.all()
