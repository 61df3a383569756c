"""What lies between an expert's two halves, on a card."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from workers.gpu.device import MOST_GRID_Y_OR_Z, Stream
from workers.gpu.linear import GpuRows

_WARPS = 4


class SwigluArgs(ctypes.Structure):
    """As swiglu.h has it; null where a field is left out."""

    _fields_ = (
        ("gate", ctypes.c_void_p),
        ("up", ctypes.c_void_p),
        ("num_rows", ctypes.c_void_p),
        ("x", ctypes.c_void_p),
        ("q", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("stride", ctypes.c_int64),
        ("limit", ctypes.c_float),
    )


@dataclass(frozen=True, slots=True)
class Halves:
    """What gate and up gave, in a card's memory.

    Attributes:
        gate, up: addresses, float32 [rows, stride] of which `columns` count.
        rows: how many there are, at most where `num_rows` says it.
        num_rows: address of an int32 that does, or 0.
    """

    gate: int
    up: int
    rows: int
    columns: int
    stride: int
    num_rows: int = 0


def swiglu(stream: Stream, halves: Halves, limit: float, to: GpuRows, block: int = 0) -> None:
    """act(gate) * up as `orchestrator.kernels.swiglu` has it, rounded as `workers.kernels.round_rows` does.

    Args:
        limit: the clamp, 0 for none.
        to: addresses that are written; with a block `x` may be 0, without one only `x` is.
        block: 256 or 32 to round in such blocks; 0 for float32 alone.
    """
    arguments = SwigluArgs(
        halves.gate,
        halves.up,
        halves.num_rows or None,
        to.x or None,
        to.q or None,
        to.scales or None,
        to.sums or None,
        halves.rows,
        halves.columns,
        halves.stride,
        limit,
    )
    rows = min(halves.rows, MOST_GRID_Y_OR_Z)
    if block:
        grid = (-(-halves.columns // (block * _WARPS)), rows, 1)
        stream.launch(f"swiglu_round_{block}", grid, 32 * _WARPS, arguments)
    else:
        grid = (-(-halves.columns // (32 * _WARPS)), rows, 1)
        stream.launch("plain_swiglu", grid, 32 * _WARPS, arguments)
