"""What keys and values take, and rows that wait for MTP layers: one position, one page, one sequence.

The one place that knows. Plans, `potluck inspect` and the cache of a run all count so (docs/attention.md has
a page's layout).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from placement.errors import KvDoesNotFit
from placement.model_shape import MOST_POSITIONS, AttentionShape, ModelShape
from placement.units import size

PAGE_POSITIONS = 128
"""A page's, as arguments.h of the kernels has it."""
MAX_DRAFTS = 3
"""Positions that a sequence may be rolled back by."""
HELD_BACK = 2 * MAX_DRAFTS
"""Positions before a sequence's newest at which it, or another from its pages, may go on.

As many as drafts that were rolled back, and slots that MTP layers are behind (docs/prefix-cache.md).
"""
PASS_ROWS = 256
"""Tokens of a prompt that a run reads in one pass."""
MOST_DEFERRED = 64
"""Rows of a sequence that wait for an MTP layer which needs all of them, while nobody wants its drafts.

A row takes a hidden state's memory, and the MTP layers compute many rows nearly as fast as one.
"""
ROWS_BACK = HELD_BACK + PAGE_POSITIONS
"""So many rows before the newest one, drafts are right too: others may go on there from the trunk's pages."""

# The kernels compute so many values of a row at once, and pad rows to whole panels.
_PANEL, _MOST_HEAD_DIM = 16, 8192


class KvForm(StrEnum):
    """How keys and values are kept. int8 has a float32 scale for each position, head, and key or value."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    int8 = "int8"

    @classmethod
    def of(cls, dtype: str) -> KvForm:
        """What a run in `dtype` keeps unless it is told otherwise."""
        return cls.float32 if dtype == "float32" else cls.bfloat16

    @property
    def value_bytes(self) -> int:
        """Of one number, without scales."""
        return {"float32": 4, "bfloat16": 2, "int8": 1}[self.value]

    @property
    def scale_bytes(self) -> int:
        """Of one head's key, or value, in one position."""
        return 4 if self is KvForm.int8 else 0


@dataclass(frozen=True, slots=True)
class KvShape:
    """One layer's keys and values.

    Raises:
        ValueError: head_dim is more than 8,192, the kernels' bound.
    """

    form: KvForm
    num_kv_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        if not 0 < self.head_dim <= _MOST_HEAD_DIM:
            raise ValueError(f"head_dim {self.head_dim}: the kernels take 1 to {_MOST_HEAD_DIM}")

    @classmethod
    def of(cls, attention: AttentionShape, form: KvForm) -> KvShape:
        """Of a model's layer."""
        return cls(form, attention.num_kv_heads, attention.head_dim)

    @property
    def position_bytes(self) -> int:
        """Of one position's keys and values, scales and padding included: what attention reads of it."""
        width = -(-self.head_dim // _PANEL) * _PANEL
        return 2 * self.num_kv_heads * (width * self.form.value_bytes + self.form.scale_bytes)

    @property
    def page_bytes(self) -> int:
        """Of PAGE_POSITIONS positions."""
        return PAGE_POSITIONS * self.position_bytes


@dataclass(frozen=True, slots=True)
class WaitingSize:
    """What rows of one sequence take while they wait for MTP layers (docs/scheduler.md, 'Rows that wait').

    They lie in RAM, wherever the layers are computed.

    Attributes:
        page_bytes: of PAGE_POSITIONS rows.
        num_layers: that they wait for.
        num_eager: of these, the first ones that need all rows; each lets fewer than MOST_DEFERRED wait.
        rows_back: of the newest rows, so many may wait for the other layers.
    """

    page_bytes: int
    num_layers: int
    num_eager: int
    rows_back: int

    @classmethod
    def of(cls, mtp_layers: Sequence[AttentionShape], hidden_size: int) -> WaitingSize:
        """Of these MTP layers, the first ones of a model."""
        found = reaches(mtp_layers)
        finite = [reach for reach in found if reach is not None]
        rows_back = finite[0] + ROWS_BACK + 1 if finite else 0
        return cls(row_pages(hidden_size).page_bytes, len(found), len(found) - len(finite), rows_back)

    def num_bytes(self, num_positions: int, pass_rows: int = PASS_ROWS) -> int:
        """Bytes of the pages held at a time, at most, in passes of any sizes up to `pass_rows` rows.

        A row waits for one layer at a time, since the next one waits for that layer's output. So layers hold
        rows of different positions. Where a layer's rows begin within a page, the layer behind it has a page
        of its own for the rows before them: one page more for each layer behind the first.
        """
        if not self.num_layers:
            return 0
        seen = max(self.rows_back, pass_rows + self.num_eager * MOST_DEFERRED)
        pages = min(pages_of(num_positions), pages_of(seen - 1) + 1)
        return self.page_bytes * (pages + self.num_layers - 1) if pages else 0


class SequenceSize:
    """What one sequence takes for any number of positions: keys and values in some layers, rows that wait."""

    __slots__ = ("_page_bytes", "_waiting")

    def __init__(
        self, layers: Iterable[AttentionShape], form: KvForm, waiting: WaitingSize | None = None
    ) -> None:
        """`waiting`: of the rows, where they lie in the same memory and there are MTP layers."""
        self._waiting = waiting
        self._page_bytes: dict[int, int] = {}
        """Window, 0 for none -> bytes of a page in all layers that have it."""
        for layer in layers:
            before = self._page_bytes.get(layer.window, 0)
            self._page_bytes[layer.window] = before + KvShape.of(layer, form).page_bytes

    @classmethod
    def of(cls, shape: ModelShape, form: KvForm, num_drafts: int) -> SequenceSize:
        """In the trunk and in as many MTP layers as there are drafts in a step, with the rows that wait."""
        trunk = shape.num_hidden_layers
        layers = shape.attention[: trunk + num_drafts]
        return cls(layers, form, WaitingSize.of(layers[trunk:], shape.hidden_size))

    def num_bytes(self, num_positions: int, pass_rows: int = PASS_ROWS) -> int:
        """Bytes of the pages held at a time, at most, where a prompt's passes keep to a grid.

        A pass of it has at most `pass_rows` rows, and lies within one that begins at a multiple of
        `pass_grid`. Later passes have at most a token and its drafts.
        """
        return self._waiting_bytes(num_positions, pass_rows) + sum(
            page_bytes * self._most_pages(window, num_positions, pass_rows)
            for window, page_bytes in self._page_bytes.items()
        )

    def num_bytes_in_any_passes(self, num_positions: int, pass_rows: int = PASS_ROWS) -> int:
        """The same where a prompt's passes have any sizes up to `pass_rows` rows."""
        total = self._waiting_bytes(num_positions, pass_rows)
        for window, page_bytes in self._page_bytes.items():
            pages = pages_of(num_positions)
            if window:
                # A pass begins anywhere in a page, and MTP layers compute again what hung on drafts.
                seen = window + MAX_DRAFTS - 1 + pass_rows + 2 * MAX_DRAFTS
                pages = min(pages, pages_of(seen - 1) + 1)
            total += page_bytes * pages
        return total

    def most_positions(self, budget_bytes: int, pass_rows: int = PASS_ROWS) -> int:
        """The most positions whose pages fit the budget; MOST_POSITIONS where that many do."""
        low, high = 0, pages_of(MOST_POSITIONS)
        while low < high:
            pages = (low + high + 1) // 2
            if self.num_bytes(pages * PAGE_POSITIONS, pass_rows) <= budget_bytes:
                low = pages
            else:
                high = pages - 1
        return low * PAGE_POSITIONS

    def check(self, num_positions: int, pass_rows: int, budget_bytes: int) -> None:
        """Raise KvDoesNotFit unless the pages of so many positions fit the budget."""
        num_bytes = self.num_bytes(num_positions, pass_rows)
        if num_bytes > budget_bytes:
            raise KvDoesNotFit(
                f"keys and values of {num_positions} positions take {size(num_bytes)}, their budget is "
                f"{size(budget_bytes)}: {self.most_positions(budget_bytes, pass_rows)} positions fit; "
                "shorten the prompt, ask for fewer tokens, or keep keys and values in int8 (--kv int8)"
            )

    def _waiting_bytes(self, num_positions: int, pass_rows: int) -> int:
        return 0 if self._waiting is None else self._waiting.num_bytes(num_positions, pass_rows)

    def _most_pages(self, window: int, num_positions: int, pass_rows: int) -> int:
        pages = pages_of(num_positions)
        if not window:
            return pages
        # Positions before a pass that it, or a pass after a rollback, may look at.
        reach = window + HELD_BACK - 1
        # Further on, passes begin at the same places of a page again.
        last = min(num_positions, reach + PAGE_POSITIONS + math.lcm(pass_rows, PAGE_POSITIONS))
        of_prompt = max(
            (
                pages_of(min(num_positions, start + pass_rows)) - max(0, start - reach) // PAGE_POSITIONS
                for start in range(0, last, pass_grid(pass_rows))
            ),
            default=0,
        )
        # A decode pass begins anywhere in a page. MTP layers compute again what hung on drafts.
        of_step = pages_of(reach + 2 * MAX_DRAFTS) + 1
        return min(pages, max(of_prompt, of_step))


def reaches(mtp_layers: Sequence[AttentionShape]) -> list[int | None]:
    """Of each MTP layer, how many slots before the newest one drafts may hang on; None for all.

    A sliding layer of window W sees W slots. So a state hangs on W - 1 slots before its own in that layer,
    and on as many more in each layer before.
    """
    found: list[int | None] = []
    reach: int | None = 0
    for layer in reversed(mtp_layers):
        reach = reach + layer.window - 1 if reach is not None and layer.is_sliding else None
        found.insert(0, reach)
    return found


def row_pages(hidden_size: int) -> KvShape:
    """Pages that have room for a row of so many float32 a position."""
    return KvShape(KvForm.float32, -(-hidden_size // 32), 16)


def read_bytes(layers: Iterable[AttentionShape], form: KvForm, num_positions: int) -> int:
    """Bytes of keys and values that attention of one token reads, so many positions before it."""
    return sum(
        KvShape.of(layer, form).position_bytes
        * (min(num_positions, layer.window) if layer.is_sliding else num_positions)
        for layer in layers
    )


def pass_grid(pass_rows: int) -> int:
    """Whole passes of a prompt begin at multiples of this: with a page if they are pages.

    A text that goes on from a kept prefix begins anywhere; `orchestrator.prefix.stops` cuts its first pass.
    """
    return pass_rows if pass_rows % PAGE_POSITIONS else PAGE_POSITIONS


def pages_of(num_positions: int) -> int:
    """Pages from position 0 on that so many positions touch."""
    return -(-num_positions // PAGE_POSITIONS)
