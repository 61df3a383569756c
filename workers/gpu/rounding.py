"""Rows rounded to 8 bits on a card, as products with quantised weights take them."""

from __future__ import annotations

import ctypes

from workers.gpu.device import Stream
from workers.gpu.linear import GpuRows

_WARPS = 4


class RoundRowsArgs(ctypes.Structure):
    """Of rounding.h."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("q", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
        ("blocks", ctypes.c_int64),
    )


def round_rows(stream: Stream, x: int, to: GpuRows, block: int, num_blocks: int) -> None:
    """Round as `workers.kernels.round_rows` does.

    Args:
        x: address of float32, in so many blocks of `block` values.
        to: where `q`, `scales` and `sums` are written.
        block: 256 or 32.
    """
    arguments = RoundRowsArgs(x, to.q, to.scales, to.sums, num_blocks)
    stream.launch(f"round_rows_{block}", (-(-num_blocks // _WARPS), 1, 1), 32 * _WARPS, arguments)
