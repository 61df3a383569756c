"""What our kernels reach on a card with weights in some form, by rows of an expert."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from placement.given.probe_figures import FormRate
from placement.units import size
from placement.weight_format import BFLOAT16, WeightFormat
from workers.gpu.alignment import aligned
from workers.gpu.device import Device, Memory, Stream
from workers.gpu.errors import DeviceFull
from workers.gpu.expert_layer import TILES_FROM_ROWS
from workers.gpu.grids import Grids
from workers.gpu.linear import GpuGroups, GpuMatrix, GpuRows, linear
from workers.gpu.tiles import tiles
from workers.kernels import round_rows
from workers.probe.experts import HIDDEN, Width
from workers.probe.gpu_clock import card_s
from workers.probe.random_blocks import random_blocks
from workers.probe.time_left import TimeLeft

ROWS = (1, 2, 4, 8, 16, 64)
_FAR_BYTES = 256 << 20
"""Of weights: several times what a card's caches hold (50 MB on an H100)."""
_FEW_FLOPS = 5e10
"""Arithmetic bounds many rows: so many tell its rate, where one row needs more bytes than caches hold."""
_SMALL_ROWS = 32


@dataclass(frozen=True, slots=True)
class SmallKernel:
    """A row of the usual width through a few rows of weights; `address`, `num_bytes`: of that row."""

    address: int
    num_bytes: int
    launch: Callable[[], None]


def small_kernel(device: Device, stream: Stream) -> SmallKernel:
    """One that takes next to no time itself."""
    put = _Uploads(device, stream)
    data = np.zeros(_SMALL_ROWS * BFLOAT16.row_bytes(HIDDEN), np.uint8)
    matrix = GpuMatrix(BFLOAT16, _SMALL_ROWS, HIDDEN, put(np.array([put(data)], np.uint64)))
    row = put(np.zeros(HIDDEN, np.float32))
    out = put(np.zeros(_SMALL_ROWS, np.float32))
    stream.synchronize()

    def launch(_held: _Uploads = put) -> None:
        linear(stream, matrix, GpuRows(x=row), out, 1)

    return SmallKernel(row, 4 * HIDDEN, launch)


def card_rates(
    device: Device, stream: Stream, form: WeightFormat, width: Width, room_bytes: int, seconds: float
) -> FormRate:
    """FLOP/s with 1 to 64 rows of each of many experts in one launch, by the card's clock.

    Args:
        width: of an expert, where it suits the form; its gate is what is multiplied.
        room_bytes: of VRAM that may be used.
        seconds: for all numbers of rows together.

    Raises:
        DeviceFull: there is too little for the weights, or another program has taken it meanwhile.
        DeviceUnavailable: kernels cannot be compiled here.
    """
    if not width.suits(form):
        width = Width()
    flops_a_row = 2 * width.hidden * width.inner
    matrix_bytes = form.matrix_bytes(width.inner, width.hidden)
    count = min(_FAR_BYTES, room_bytes // 3) // matrix_bytes
    if not count:
        raise DeviceFull(f"{device.name}: {size(room_bytes)} are too little to measure with", matrix_bytes)
    put, grids = _Uploads(device, stream), Grids.upload(device)
    matrix = replace(_matrices(put, form, width, count), grid=grids.address(form.name))
    rows = _rows(put, form, width.hidden)
    numbers = {number: max(1, min(count, round(_FEW_FLOPS / number / flops_a_row))) for number in ROWS}
    out = device.allocate(4 * width.inner * max(number * groups for number, groups in numbers.items()))
    left = TimeLeft(seconds, {str(number): 1.0 for number in ROWS})
    found = []
    for number, experts in numbers.items():
        groups = GpuGroups(
            most=experts,
            rows=put(np.tile(np.arange(number, dtype=np.int32), experts)),
            count=put(np.array([experts], np.int32)),
            starts=put(number * np.arange(experts + 1, dtype=np.int32)),
            slots=put(np.arange(experts, dtype=np.int32)),
        )
        # As a layer of experts chooses.
        multiply = tiles if form.rounding_block and number >= TILES_FROM_ROWS else linear
        call = partial(multiply, stream, matrix, rows, out.address, number, groups=groups)
        spent_s = card_s(stream, call, left.next(str(number)), least_turns=1)
        found.append(number * experts * flops_a_row / spent_s)
    return FormRate(form=form.name, rows=ROWS, flops_per_s=tuple(found))


class _Uploads:
    """Puts arrays into a card's memory, where they stay as long as this object."""

    def __init__(self, device: Device, stream: Stream) -> None:
        self.stream = stream
        self._device = device
        self._held: list[Memory] = []

    def __call__(self, array: NDArray[np.generic]) -> int:
        """Its address there."""
        address = self.room(array.nbytes)
        self.stream.upload(address, np.ascontiguousarray(array))
        return address

    def room(self, num_bytes: int) -> int:
        """The address of so many bytes."""
        self._held.append(self._device.allocate(num_bytes))
        return self._held[-1].address


def _matrices(put: _Uploads, form: WeightFormat, width: Width, count: int) -> GpuMatrix:
    """`count` equal ones: what their numbers are changes no time."""
    num_blocks = width.inner * width.hidden // form.block_weights
    blocks = random_blocks(form.name, num_blocks, 0.02, np.random.default_rng(0))
    stride = aligned(blocks.nbytes)
    start = put.room(count * stride)
    put.stream.upload(start, blocks.reshape(-1))
    for number in range(1, count):
        put.stream.copy(start + number * stride, start, blocks.nbytes)
    put.stream.synchronize()
    table = start + stride * np.arange(count, dtype=np.uint64)
    return GpuMatrix(form, width.inner, width.hidden, put(table))


def _rows(put: _Uploads, form: WeightFormat, hidden: int) -> GpuRows:
    """As many as the most that an expert gets."""
    x = np.random.default_rng(1).standard_normal((ROWS[-1], hidden), np.float32)
    if not form.rounding_block:
        return GpuRows(x=put(x))
    (part,) = round_rows(x, (form.rounding_block,)).parts
    sums = part.q.reshape(len(x), -1, 16).sum(axis=2, dtype=np.int16)
    return GpuRows(q=put(part.q), scales=put(part.scales), sums=put(sums))
