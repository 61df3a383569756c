"""How long a step takes: the roofline of each device, a round trip and the wire for each box asked.

docs/cost-model.md derives the formulas. Every rate comes from the cluster file; none is written here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.integer] | NDArray[np.floating]
"""Whole where they were counted, fractions where they are expected."""

Devices = slice | int | NDArray[np.integer]
"""Which devices an array's last axis stands for: all of them, one, or these."""


def _absent() -> NDArray[np.float64]:
    """Of fields that nobody gave: nothing measured, nothing shared."""
    return np.empty(0)


@dataclass(frozen=True, slots=True, eq=False)
class ExpertRates:
    """Seconds that one MoE layer costs each device; float64 [num_devices] each.

    Attributes:
        round_trip_s: once, if the device is asked at all.
        row_wire_s: for each row sent to it and answered.
        read_s: for each distinct expert read from its memory.
        compute_s: for each (row, expert) pair multiplied.
        expert_s: for each distinct expert on top of its pairs, where arithmetic takes longer than reading.
        busy_s: before it can start: on the head's own device the shared expert, which reads the same memory.
        request_s: its software, once if it is asked at all.
        message_s: the head's software, once if it is asked at all, before or after what others do meanwhile.
        message_row_s: the head's software for each row sent to it and answered, likewise.
        busy_reads: 1 where memory bounds `busy_s`, 0 where arithmetic does.
        machine: number of the machine whose cores and memory it shares, -1 where it shares none.
        cores: share of that machine's cores that it uses while it computes.
        bus: share of that machine's memory bandwidth that it takes while it reads.
        cpu: int, the device that computes its experts: of a disk the RAM's beside it, else itself.
        box: int, the first device that the same message reaches, itself where a box has one device. The
            head's own device gets no message and is alone.
    """

    round_trip_s: NDArray[np.float64]
    row_wire_s: NDArray[np.float64]
    read_s: NDArray[np.float64]
    compute_s: NDArray[np.float64]
    busy_s: NDArray[np.float64]
    expert_s: NDArray[np.float64] = field(default_factory=_absent)
    request_s: NDArray[np.float64] = field(default_factory=_absent)
    message_s: NDArray[np.float64] = field(default_factory=_absent)
    message_row_s: NDArray[np.float64] = field(default_factory=_absent)
    busy_reads: NDArray[np.float64] = field(default_factory=_absent)
    machine: NDArray[np.float64] = field(default_factory=_absent)
    cores: NDArray[np.float64] = field(default_factory=_absent)
    bus: NDArray[np.float64] = field(default_factory=_absent)
    cpu: NDArray[np.intp] = field(default_factory=lambda: np.empty(0, dtype=np.intp))
    box: NDArray[np.intp] = field(default_factory=lambda: np.empty(0, dtype=np.intp))

    def __post_init__(self) -> None:
        for itself in ("cpu", "box"):
            if not getattr(self, itself).size:
                object.__setattr__(self, itself, np.arange(len(self.read_s)))
        for rate in fields(self):
            if not getattr(self, rate.name).size:
                absent = np.full(np.shape(self.read_s), -1.0 if rate.name == "machine" else 0.0)
                object.__setattr__(self, rate.name, absent)

    @property
    def first_of_box(self) -> NDArray[np.bool_]:
        """bool [num_devices], true for one device of each box: it stands for the box's messages."""
        first: NDArray[np.bool_] = self.box == np.arange(len(self.box))
        return first

    @property
    def shared_box(self) -> NDArray[np.intp] | None:
        """`box`, None where every device has one to itself."""
        return None if self.first_of_box.all() else self.box


def roofline_s(num_bytes: float, flops: float, bytes_per_s: float, flops_per_s: float) -> float:
    """Reading and arithmetic overlap, so the longer of the two counts (Williams, Waterman and Patterson,
    CACM 52, 2009)."""
    return max(num_bytes / bytes_per_s, flops / flops_per_s)


def device_seconds(
    rates: ExpertRates,
    rows: Counts,
    distinct: Counts,
    pairs: Counts,
) -> NDArray[np.float64]:
    """When each device's part of one layer is back if it had its machine alone: float64 [..., num_devices].

    round trip (if asked) + rows x wire + the larger of distinct experts x read and pairs x compute
    (roofline; Williams, Waterman and Patterson, CACM 52, 2009), behind what keeps the device busy.

    Args:
        rows: int [..., num_devices], rows of the request to the device's box.
        distinct: experts it must read.
        pairs: (token, expert) pairs it computes.
    """
    seconds: NDArray[np.float64] = (
        rates.busy_s + wire_seconds(rates, rows) + work_alone_seconds(rates, distinct, pairs)
    )
    return seconds


def wire_seconds(rates: ExpertRates, rows: Counts) -> NDArray[np.float64]:
    """Round trip and bytes under way of a request of so many rows: float64 [..., num_devices]."""
    seconds: NDArray[np.float64] = (rows > 0) * rates.round_trip_s + rows * rates.row_wire_s
    return seconds


def messages_seconds(rates: ExpertRates, rows: Counts) -> NDArray[np.float64]:
    """The head's software for a layer's requests and answers, one after another: float64 [...].

    Args:
        rows: [..., num_devices], rows of the request to each device's box, which counts once.
    """
    first = rates.first_of_box
    seconds: NDArray[np.float64] = (rows > 0) @ (rates.message_s * first) + rows @ (
        rates.message_row_s * first
    )
    return seconds


def expected_message_rows(rates: ExpertRates, pairs: Counts, num_tokens: int) -> NDArray[np.float64]:
    """Rows of the request to each device's box in a pass of hundreds of tokens: float64 [..., num_devices].

    A box that computes many pairs is needed by every row; one that computes few gets about a row a pair.
    """
    box = rates.shared_box
    of_box = pairs if box is None else pairs @ (box[:, None] == box)
    rows: NDArray[np.float64] = np.minimum(of_box, num_tokens)
    return rows


def work_alone_seconds(rates: ExpertRates, distinct: Counts, pairs: Counts) -> NDArray[np.float64]:
    """How long each device works on its experts of one layer, alone: float64 [..., num_devices]."""
    seconds: NDArray[np.float64] = (pairs > 0) * rates.request_s + roofline_seconds(rates, distinct, pairs)
    return seconds


def roofline_seconds(
    rates: ExpertRates, distinct: Counts | int, pairs: Counts | float, devices: Devices = slice(None)
) -> NDArray[np.float64]:
    """Reading experts or multiplying with them, whichever takes longer.

    Args:
        distinct, pairs: of `devices`, along the last axis; any shape where that is a single device.
    """
    seconds: NDArray[np.float64] = np.maximum(
        distinct * rates.read_s[devices], arithmetic_seconds(rates, distinct, pairs, devices)
    )
    return seconds


def arithmetic_seconds(
    rates: ExpertRates, distinct: Counts | int, pairs: Counts | float, devices: Devices = slice(None)
) -> NDArray[np.float64]:
    """How long `devices` take for a layer's experts where arithmetic bounds it, as `roofline_seconds`."""
    seconds: NDArray[np.float64] = pairs * rates.compute_s[devices]
    # Most cluster files measure no `expert_s`, and the arrays are long.
    return seconds + distinct * rates.expert_s[devices] if rates.expert_s.any() else seconds
