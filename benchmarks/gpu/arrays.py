"""Arrays in a card's memory for as long as somebody measures with them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from placement.weight_format import WeightFormat
from workers.gpu.device import Memory, Stream
from workers.gpu.grids import Grids
from workers.gpu.linear import GpuGroups, GpuMatrix, GpuRows
from workers.kernels import round_rows
from workers.probe.random_blocks import TYPES, random_blocks

_ALIGNMENT = 256
_DRAWN_BLOCKS = 1 << 14


@dataclass(slots=True)
class Arrays:
    """Puts arrays there by way of `stream`; they go with this object."""

    stream: Stream
    _held: list[Memory] = field(default_factory=list)
    _grids: Grids | None = None

    def room(self, num_bytes: int) -> int:
        """The address of so many bytes. Raises DeviceFull."""
        self._held.append(self.stream.device.allocate(num_bytes))
        return self._held[-1].address

    def put(self, array: NDArray[np.generic]) -> int:
        """The address of a copy."""
        source = np.ascontiguousarray(array)
        address = self.room(source.nbytes)
        self.stream.upload(address, source)
        self.stream.synchronize()
        return address

    def matrices(self, form: WeightFormat, rows: int, columns: int, count: int) -> GpuMatrix:
        """So many, of random blocks that repeat: what the numbers are changes no time."""
        num_bytes = rows * form.row_bytes(columns)
        stride = -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
        drawn = min(rows * columns // form.block_weights, _DRAWN_BLOCKS)
        blocks = _random_blocks(form, drawn, columns).reshape(-1)
        total = count * stride
        start = self.room(total)
        # Copies begin anew with each block, wherever a matrix begins.
        filled = min(len(blocks), total)
        self.stream.upload(start, blocks[:filled])
        while filled < total:
            more = min(filled, total - filled)
            self.stream.copy(start + filled, start, more)
            filled += more
        self.stream.synchronize()
        if self._grids is None:
            self._grids = Grids.upload(self.stream.device)
        table = self.put(start + stride * np.arange(count, dtype=np.uint64))
        scales = 0
        if form.scale_tile:
            of_one = self.put(
                np.ones(-(-rows // form.scale_tile) * -(-columns // form.scale_tile), np.float32)
            )
            scales = self.put(np.full(count, of_one, np.uint64))
        return GpuMatrix(form, rows, columns, table, scales, self._grids.address(form.name))

    def rows(self, form: WeightFormat, count: int, columns: int) -> GpuRows:
        """As the form takes them."""
        x = np.random.default_rng(1).standard_normal((count, columns), np.float32)
        if not form.rounding_block:
            return GpuRows(x=self.put(x))
        (part,) = round_rows(x, (form.rounding_block,)).parts
        sums = part.q.reshape(count, -1, 16).sum(axis=2, dtype=np.int16)
        return GpuRows(q=self.put(part.q), scales=self.put(part.scales), sums=self.put(sums))

    def groups(self, num_groups: int, rows_each: int) -> GpuGroups:
        """The same first rows for each of the first matrices."""
        return GpuGroups(
            most=num_groups,
            rows=self.put(np.tile(np.arange(rows_each, dtype=np.int32), num_groups)),
            count=self.put(np.array([num_groups], np.int32)),
            starts=self.put(rows_each * np.arange(num_groups + 1, dtype=np.int32)),
            slots=self.put(np.arange(num_groups, dtype=np.int32)),
        )


def _random_blocks(form: WeightFormat, count: int, columns: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    if form.name in TYPES:
        return random_blocks(form.name, count, columns**-0.5, rng)
    # 8-bit floats, which GGUF files have not: of both signs, none that is not a number.
    size = (count, form.block_bytes)
    signs = rng.integers(2, size=size, dtype=np.uint8) * np.uint8(0x80)
    found: NDArray[np.uint8] = rng.integers(0x70, size=size, dtype=np.uint8) | signs
    return found
