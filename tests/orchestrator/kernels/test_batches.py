"""Rows of several sequences in one call have the bits that each sequence's have alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from orchestrator import kernels
from orchestrator.kernels import AttentionHeads, PassRows, Rotation, SequenceRows
from orchestrator.model.rope import RopeTable
from placement.kv_size import PAGE_POSITIONS, KvForm, KvShape, pages_of
from tests.orchestrator.kernels.kv_pages import EPS, new_pages
from workers.model_config import LayerConfig

SameBits = Callable[[Callable[[], tuple[Tensor, ...]]], None]
LAYER, LAYERS = 1, 3
"""Tables have other layers before and after the one that is computed; theirs are of no pages."""


@dataclass(frozen=True)
class Shape:
    kv: KvShape
    group: int
    window: int
    has_gate: bool
    half: int

    def heads(self, seed: int) -> AttentionHeads:
        rows = self.kv.num_kv_heads * (self.group + 1)
        qk_norm = torch.rand(rows, self.kv.head_dim, generator=torch.Generator().manual_seed(seed)) + 0.5
        scale = self.kv.head_dim**-0.5
        return AttentionHeads(qk_norm, self.kv.num_kv_heads, self.window, scale, EPS, self.has_gate)

    def rotation(self, stop: int) -> Rotation:
        dim = self.kv.head_dim
        layer = LayerConfig(0, True, self.group, 1, dim, 1e4, 2 * self.half, None, False, 0.0, 0.0)
        return RopeTable(layer).upto(stop)


@dataclass(frozen=True)
class Part:
    """New rows of one sequence; its earlier ones are in the pages, which the table may no longer have."""

    position: int
    qkv: Tensor
    pages: list[Tensor]
    tables: NDArray[np.int64]

    def copy(self) -> Part:
        """The same in pages of its own."""
        pages, tables = [page.clone() for page in self.pages], self.tables.copy()
        of_pages = np.array([page.data_ptr() for page in pages], np.int64)
        tables[LAYER, : len(pages)] = np.where(tables[LAYER, : len(pages)], of_pages, 0)
        return replace(self, pages=pages, tables=tables)


class Batch:
    """Sequences at some positions with some new rows each.

    Sequences share the whole pages of the text that they begin with. Pages before a window are not held.
    """

    def __init__(self, shape: Shape, spans: list[tuple[int, int]], shared: int, seed: int) -> None:
        self.shape = shape
        self.heads = shape.heads(seed)
        self.rotation = shape.rotation(max(position + count for position, count in spans))
        self._random = torch.Generator().manual_seed(seed)
        common = self._projected(shared)
        common_pages: list[Tensor] = []
        self.parts = []
        for position, count in spans:
            pages, table = new_pages(shape.kv, position + count)
            tables = np.zeros((LAYERS, len(pages) + 3), np.int64)
            tables[LAYER, : len(pages)] = table
            alike = min(shared, position)
            earlier = torch.cat([common[:alike], self._projected(position - alike)])
            if position:
                writing = replace(shape, window=1, has_gate=False).heads(seed)
                rows = PassRows(self._shapes, [SequenceRows(tables, 0, position)])
                kernels.attention(earlier, writing, self.rotation, rows, LAYER)
            for place in range(min(len(common_pages), alike // PAGE_POSITIONS)):
                assert torch.equal(pages[place], common_pages[place])
                pages[place] = common_pages[place]
                tables[LAYER, place] = pages[place].data_ptr()
            common_pages += pages[len(common_pages) : alike // PAGE_POSITIONS]
            if shape.window:
                tables[LAYER, : max(0, position + 1 - shape.window) // PAGE_POSITIONS] = 0
            self.parts.append(Part(position, self._projected(count), pages, tables))

    @property
    def _shapes(self) -> tuple[KvShape, ...]:
        other = KvShape(KvForm.float32, 7, 8)
        return (other, self.shape.kv, other)

    def _projected(self, rows: int) -> Tensor:
        return torch.randn(rows, self.heads.width, generator=self._random)

    def attend(self, parts: list[Part]) -> Tensor:
        rows = [SequenceRows(part.tables, part.position, len(part.qkv)) for part in parts]
        qkv = torch.cat([part.qkv for part in parts])
        return kernels.attention(qkv, self.heads, self.rotation, PassRows(self._shapes, rows), LAYER)

    def together(self) -> tuple[Tensor, ...]:
        """Of all sequences in one call: outputs, then all pages."""
        outputs = self.attend(self.parts)
        return (outputs, *(page for part in self.parts for page in part.pages))

    def alone(self) -> tuple[Tensor, ...]:
        """The same, a call a sequence, in copies of the pages."""
        copies = [part.copy() for part in self.parts]
        outputs = torch.cat([self.attend([part]) for part in copies])
        return (outputs, *(page for part in copies for page in part.pages))


def assert_same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


spans = st.tuples(
    st.one_of(st.sampled_from([0, 1, 127, 128, 256]), st.integers(0, 400)),
    st.one_of(st.integers(1, 4), st.integers(5, 60)),
)


@given(
    st.lists(spans, min_size=1, max_size=7),
    st.sampled_from([(1, 1), (2, 3), (1, 12), (3, 2), (1, 100)]),
    st.sampled_from([1, 16, 24, 64, 70]),
    st.sampled_from([0, 1, 100, 128, 129]),
    st.booleans(),
    st.sampled_from(KvForm),
    st.sampled_from([0, 130, 256]),
    st.integers(0, 2**31),
)
def test_a_sequences_rows_do_not_depend_on_who_else_is_in_the_pass(
    spans: list[tuple[int, int]],
    kv_heads_and_group: tuple[int, int],
    dim: int,
    window: int,
    has_gate: bool,
    form: KvForm,
    shared: int,
    seed: int,
) -> None:
    kv_heads, group = kv_heads_and_group
    shape = Shape(KvShape(form, kv_heads, dim), group, window, has_gate, dim // 4)
    batch = Batch(shape, spans, shared, seed)
    assert_same(batch.together(), batch.alone())


@pytest.mark.parametrize("form", KvForm)
@pytest.mark.parametrize(
    ("window", "has_gate"), [(0, True), (0, False), (1500, True), (130, True), (130, False)]
)
def test_a_batch_has_the_same_bits_everywhere(
    window: int, has_gate: bool, form: KvForm, same_bits_everywhere: SameBits
) -> None:
    """Enough work for three threads, one sequence so much longer that its keys are split among them."""
    shape = Shape(KvShape(form, 2, 40), 3, window, has_gate, 20)
    spans = [(300, 1), (2700, 3), (0, 90), (1200, 1), (255, 4), (2900, 70), (0, 1), (300, 2)]
    batch = Batch(shape, spans, 256, seed=window)
    expected = batch.alone()
    assert_same(batch.together(), expected)
    same_bits_everywhere(batch.together)
    assert_same(batch.alone(), expected)


@pytest.mark.parametrize("threads", [2, 5])
def test_the_order_of_sequences_and_cuts_of_their_rows_do_not_change_a_bit(threads: int) -> None:
    shape = Shape(KvShape(KvForm.bfloat16, 2, 64), 8, 0, True, 16)
    batch = Batch(shape, [(2300, 40), (5, 1), (1030, 4), (900, 200)], 0, seed=1)
    expected = batch.alone()[0].split([40, 1, 4, 200])
    torch.set_num_threads(threads)
    for order in ((3, 2, 1, 0), (1, 3, 0, 2)):
        found = batch.attend([batch.parts[place] for place in order])
        assert torch.equal(found, torch.cat([expected[place] for place in order]))
    long, last = batch.parts[0], batch.parts[3]
    for start in range(0, 40, 10):
        now = [
            replace(part, position=part.position + start * step, qkv=part.qkv[start * step :][: 10 * step])
            for part, step in ((long, 1), (last, 5))
        ]
        found = batch.attend(now)
        assert torch.equal(found[:10], expected[0][start : start + 10])
        assert torch.equal(found[10:], expected[3][5 * start : 5 * start + 50])


def test_nothing_is_written_where_one_sequence_lacks_a_page() -> None:
    shape = Shape(KvShape(KvForm.float32, 1, 16), 2, 0, False, 8)
    batch = Batch(shape, [(10, 3), (200, 2), (5, 1)], 0, seed=1)
    batch.parts[1].tables[LAYER, 0] = 0
    before = [part.copy() for part in batch.parts]
    with pytest.raises(ValueError, match="positions 0 to 201 are needed, but their pages are not all held"):
        batch.together()
    for part, other in zip(batch.parts, before, strict=True):
        for one, unchanged in zip(part.pages, other.pages, strict=True):
            assert torch.equal(one, unchanged)


def test_the_batches_here_share_pages_and_lack_those_before_a_window() -> None:
    shape = Shape(KvShape(KvForm.float32, 1, 16), 1, 100, False, 8)
    batch = Batch(shape, [(300, 1), (260, 2)], 256, seed=1)
    first, second = (part.tables[LAYER] for part in batch.parts)
    assert first[1] == second[1] != 0
    assert not first[0]
    assert first[2] != second[2]
    assert pages_of(301) == len(batch.parts[0].pages)
