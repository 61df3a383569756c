"""New queries, keys and values: normed, rotated and written into pages on a card."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from placement.errors import InputError
from placement.kv_size import KvShape
from workers.gpu.device import Stream

MOST_HEAD_DIM = 512
"""What the kernels of attention take."""
_WARPS = 4


@dataclass(frozen=True, slots=True)
class RowPlaces:
    """Where a batch's rows stand in their sequences; all of it in the card's memory, read when kernels run.

    Attributes:
        pages: int64 [sequences, table_stride]: addresses of one layer's pages, multiples of 16; entry i of a
            sequence is the page of positions from i * PAGE_POSITIONS on.
        sequences: int32 [rows], which of these each row belongs to.
        positions: int32 [rows]; below 0: there is no such row, and nothing is done for it.
    """

    pages: int
    table_stride: int
    sequences: int
    positions: int


class RowPlacesArgs(ctypes.Structure):
    """kv::RowPlaces of kv_page.h."""

    _fields_ = (
        ("pages", ctypes.c_void_p),
        ("sequences", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
        ("table_stride", ctypes.c_int64),
    )

    @classmethod
    def of(cls, places: RowPlaces) -> RowPlacesArgs:
        """The same for a kernel."""
        return cls(places.pages, places.sequences, places.positions, places.table_stride)


class _KvRowsArgs(ctypes.Structure):
    _fields_ = (
        ("qkv", ctypes.c_void_p),
        ("qk_norm", ctypes.c_void_p),
        ("cos", ctypes.c_void_p),
        ("sin", ctypes.c_void_p),
        ("queries", ctypes.c_void_p),
        ("places", RowPlacesArgs),
        ("rows", ctypes.c_int64),
        ("stride", ctypes.c_int64),
        ("num_heads", ctypes.c_int64),
        ("num_kv_heads", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
        ("half", ctypes.c_int64),
        ("eps", ctypes.c_float),
    )


def kv_rows(
    stream: Stream,
    num_rows: int,
    places: RowPlaces,
    kv: KvShape,
    num_heads: int,
    *,
    qkv: int,
    qkv_stride: int,
    qk_norm: int,
    eps: float,
    cos: int,
    sin: int,
    rotary_half: int,
    queries: int,
) -> None:
    """Norm and rotate projected rows and write keys and values, as `orchestrator.kernels.attention` does.

    Args:
        qkv: float32, rows `qkv_stride` numbers apart: query, key and value heads.
        qk_norm: float32 [num_heads + kv heads, head_dim].
        cos, sin: float32 [rows, head_dim], of the rows' positions (`orchestrator.model.rope.RopeTable`).
        queries: float32 [rows, num_heads, head_dim], written.

    Raises:
        InputError: a head_dim that the kernels do not take.
    """
    check_head_dim(kv.head_dim)
    arguments = _KvRowsArgs(
        qkv,
        qk_norm,
        cos,
        sin,
        queries,
        RowPlacesArgs.of(places),
        num_rows,
        qkv_stride,
        num_heads,
        kv.num_kv_heads,
        kv.head_dim,
        rotary_half,
        eps,
    )
    items = num_rows * (num_heads + 2 * kv.num_kv_heads)
    stream.launch(f"kv_rows_{kv.form}", (-(-items // _WARPS), 1, 1), _WARPS * 32, arguments)


def check_head_dim(head_dim: int) -> None:
    """Raise InputError for a head_dim that the kernels do not take."""
    if not 0 < head_dim <= MOST_HEAD_DIM:
        raise InputError(
            f"head_dim {head_dim}: the GPU kernels of attention take 1 to {MOST_HEAD_DIM}: use --device cpu"
        )
