"""Attention over pages on a card."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass

import numpy as np

from orchestrator.gpu.kv_rows import RowPlaces, RowPlacesArgs, check_head_dim
from placement.kv_size import PAGE_POSITIONS, KvShape, pages_of
from workers.gpu.device import Stream

# As attention.h and kv_page.h of the kernels have them.
_MOST_PAGE_PARTS, _SPAN_PAGES, _WARPS, _GROUP = 128, 8, 4, 128
# Warps that a multiprocessor has at a time, with the registers that these kernels take.
_WARPS_AT_A_TIME = 16
# From so many rows on, rows of a prompt: a warp takes those of neighbouring positions together.
_PROMPT_ROWS = 16


class _AttentionArgs(ctypes.Structure):
    _fields_ = (
        ("queries", ctypes.c_void_p),
        ("gate", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("places", RowPlacesArgs),
        ("mixes", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("num_heads", ctypes.c_int64),
        ("num_kv_heads", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
        ("gate_stride", ctypes.c_int64),
        ("window", ctypes.c_int64),
        ("num_parts", ctypes.c_int64),
        ("bits", ctypes.c_float),
    )


@dataclass(frozen=True, slots=True)
class Workspace:
    """Memory for sums of parts, which few rows are cut into so that all of a card has work.

    Attributes:
        address: of `num_bytes(...)` bytes.
        num_parts: most parts of a row (`parts_of`).
    """

    address: int
    num_parts: int

    @staticmethod
    def parts_of(most_positions: int, window: int) -> int:
        """The most parts that a row at any position below `most_positions` is cut into."""
        seen = min(most_positions, window) if window else most_positions
        # A row's positions may begin and end within a page, or a span.
        pages = pages_of(seen) + (1 if window else 0)
        if pages <= _MOST_PAGE_PARTS:
            return pages
        spans = -(-seen // (_SPAN_PAGES * PAGE_POSITIONS)) + (1 if window else 0)
        return max(_MOST_PAGE_PARTS, spans)

    @staticmethod
    def num_bytes(num_rows: int, num_heads: int, head_dim: int, num_parts: int) -> int:
        """Bytes for so many rows."""
        return 4 * num_rows * num_heads * num_parts * (-(-head_dim // 16) * 16 + 2)


def attention(
    stream: Stream,
    num_rows: int,
    places: RowPlaces,
    kv: KvShape,
    num_heads: int,
    *,
    queries: int,
    out: int,
    window: int,
    scale: float,
    gate: int = 0,
    gate_stride: int = 0,
    workspace: Workspace | None = None,
) -> None:
    """Causal attention of rows over their sequences' pages, as `orchestrator.kernels.attention` ends with.

    Args:
        queries, out: float32 [rows, num_heads, head_dim]. Of rows that are not there, `out` is 0.
        gate: float32 logits [rows, num_heads], rows `gate_stride` numbers apart; or 0.
        workspace: for few rows, such as a decode step's: their parts are computed side by side and joined by
            a second launch. Without one, a warp does all of a row. The bits are the same.

    Raises:
        InputError: a head_dim that the kernels do not take.
    """
    check_head_dim(kv.head_dim)
    width = -(-kv.head_dim // 16) * 16
    num_parts = workspace.num_parts if workspace is not None else 0
    mixes = workspace.address if workspace is not None else 0
    arguments = _AttentionArgs(
        queries,
        gate,
        out,
        RowPlacesArgs.of(places),
        mixes,
        mixes + 4 * num_rows * num_heads * num_parts * width,
        num_rows,
        num_heads,
        kv.num_kv_heads,
        kv.head_dim,
        gate_stride,
        window,
        num_parts,
        np.float32(scale) * np.float32(1.44269504088896341),
    )
    group = num_heads // kv.num_kv_heads
    if workspace is None:
        heads, groups = _tile(kv.head_dim, group if num_rows < _PROMPT_ROWS else 4)
        blocks = -(-num_rows * group // (heads * _WARPS))
        kernel = f"attention_whole_{kv.form}_{heads}_{groups}"
        stream.launch(kernel, (blocks, kv.num_kv_heads, 1), _WARPS * 32, arguments)
        return
    heads, groups = _tile(kv.head_dim, group)
    warps = min(_WARPS, -(-group // heads))
    across = kv.num_kv_heads * -(-group // (warps * heads))
    full = stream.device.facts.multiprocessors * _WARPS_AT_A_TIME
    along = min(num_parts, max(1, -(-full // (across * warps * num_rows))))
    kernel = f"attention_parts_{kv.form}_{heads}_{groups}"
    stream.launch(kernel, (along, across, num_rows), warps * 32, arguments)
    spans = min(_SPAN_PAGES, -(-num_parts // _SPAN_PAGES) + 1)
    stream.launch("attention_join", (num_heads, num_rows, 1), spans * 32, arguments)


def _tile(head_dim: int, group: int) -> tuple[int, int]:
    """Query heads that a warp takes, so that it has no half empty tile, and groups of 128 dimensions."""
    groups = 1 << max(0, math.ceil(math.log2(head_dim / _GROUP)))
    heads = math.gcd(group, 4)
    return min(heads, 4 // groups), groups
