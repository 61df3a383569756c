"""The kernels between an expert layer's products: grouping of rows, and sums on a grid."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

import numpy as np

from workers.gpu.device import Stream

MOST_EXPERTS = 1024
"""Of a layer: `group_entries` has a thread for each (grouping.h, as the next)."""
_SLOTS_AT_ONCE = 32

_P, _L = ctypes.c_void_p, ctypes.c_int64


class GroupArgs(ctypes.Structure):
    """Of grouping.h."""

    _fields_ = (
        ("expert_ids", _P),
        ("slots", _P),
        ("group_starts", _P),
        ("group_slots", _P),
        ("counts", _P),
        ("entry_rows", _P),
        ("places", _P),
        ("flags", _P),
        ("rows", _L),
        ("top_k", _L),
        ("num_experts", _L),
    )


class SetSlotsArgs(ctypes.Structure):
    """Of grouping.h."""

    _fields_ = (
        ("slots", _P),
        ("count", _L),
        ("experts", ctypes.c_int32 * _SLOTS_AT_ONCE),
        ("values", ctypes.c_int32 * _SLOTS_AT_ONCE),
    )


class AddOnGridArgs(ctypes.Structure):
    """Of grid.h."""

    _fields_ = (
        ("y", _P),
        ("places", _P),
        ("weights", _P),
        ("scale_exponents", _P),
        ("out", _P),
        ("flags", _P),
        ("rows", _L),
        ("hidden", _L),
        ("top_k", _L),
        ("largest", ctypes.c_float),
        ("adds", ctypes.c_int32),
    )


class WidenArgs(ctypes.Structure):
    """Of received.h."""

    _fields_ = (("source", _P), ("to", _P), ("count", _L))


class SumSixteensArgs(ctypes.Structure):
    """Of received.h."""

    _fields_ = (("q", _P), ("sums", _P), ("count", _L))


def largest_steps(max_magnitude: int) -> float:
    """The largest float32 below `max_magnitude` + 0.5, where the CPU's kernels draw the line in float64."""
    bound = max_magnitude + 0.5
    nearest = np.float32(bound)
    return float(nearest if float(nearest) < bound else np.nextafter(nearest, np.float32(0)))


def set_slots(stream: Stream, table: int, slots: Mapping[int, int]) -> None:
    """Give experts of a layer other slots, -1 for none, once the stream comes to this.

    Args:
        table: address of int32 [E] on the card.
    """
    changes = list(slots.items())
    for first in range(0, len(changes), _SLOTS_AT_ONCE):
        some = changes[first : first + _SLOTS_AT_ONCE]
        arguments = SetSlotsArgs(table, len(some))
        for place, (expert, slot) in enumerate(some):
            arguments.experts[place], arguments.values[place] = expert, slot
        stream.launch("set_slots", (1, 1, 1), _SLOTS_AT_ONCE, arguments)
