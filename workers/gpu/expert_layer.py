"""One layer's experts on a card: where their matrices lie, and the launches that sum up a row's experts.

The bits are those of `workers.kernels.moe_partial_sum`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from placement.weight_format import ExpertFormat, WeightFormat
from workers.gpu.alignment import aligned
from workers.gpu.device import Device, Memory, Stream
from workers.gpu.expert_kernels import AddOnGridArgs, GroupArgs, largest_steps
from workers.gpu.grids import Grids
from workers.gpu.linear import GpuGroups, GpuMatrix, GpuRows, linear
from workers.gpu.rounding import round_rows
from workers.gpu.rows import RowsOnCard, SumOnCard
from workers.gpu.swiglu import Halves, swiglu
from workers.gpu.tiles import tiles
from workers.gpu.workspace import Areas

_GRID_THREADS = 128

TILES_FROM_ROWS = 4
"""An expert's rows, on the average of a layer's experts, from which on tensor cores multiply.

The kernels for few rows read an expert's weights once for eight rows. Where the average is four, the experts
that are asked for most have more than eight. Tensor cores read their weights once for 32 rows.
"""


@dataclass(frozen=True, slots=True)
class ExpertSizes:
    """Of a layer: gate and up are [inner, hidden], down is [hidden, inner]."""

    hidden: int
    inner: int
    forms: ExpertFormat

    @property
    def matrices(self) -> tuple[tuple[WeightFormat, int, int], ...]:
        """Form, rows and columns of gate, up and down."""
        forms, H, I = self.forms, self.hidden, self.inner  # noqa: E741
        return (forms.gate, I, H), (forms.up, I, H), (forms.down, H, I)


@dataclass(frozen=True, slots=True)
class Slot:
    """Where an expert lies in its slot, in bytes from the slot's start.

    Attributes:
        data: of gate, up and down.
        scales: of theirs, for a form that has such; else where they would be.
        num_bytes: of all.
    """

    data: tuple[int, ...]
    scales: tuple[int, ...]
    num_bytes: int

    @classmethod
    def of(cls, sizes: ExpertSizes) -> Slot:
        """Each part aligned."""
        each = []
        for form, rows, columns in sizes.matrices:
            data = rows * form.row_bytes(columns)
            each += [data, form.matrix_bytes(rows, columns) - data]
        starts = tuple(accumulate(map(aligned, each), initial=0))
        return cls(starts[0:6:2], starts[1:6:2], starts[6])


@dataclass(frozen=True, slots=True, eq=False)
class LayerOnCard:
    """A layer's experts, by slot.

    Attributes:
        gate, up, down: tables by slot.
        slots: address of int32 [E]: the slot of each expert, -1 for not here.
        most_groups: experts that can be here at a time.
        limit: the SwiGLU clamp, 0 for none.
        top_k: the model's experts per token.
    """

    sizes: ExpertSizes
    gate: GpuMatrix
    up: GpuMatrix
    down: GpuMatrix
    slots: int
    num_experts: int
    most_groups: int
    limit: float
    top_k: int
    _tables: Memory

    @classmethod
    def of(
        cls,
        device: Device,
        sizes: ExpertSizes,
        starts: Sequence[int],
        slots: NDArray[np.int32],
        grids: Grids,
        *,
        limit: float,
        top_k: int,
    ) -> LayerOnCard:
        """Write the tables; the matrices themselves are somebody else's to bring.

        Args:
            starts: addresses of the slots.
            slots: int32 [E].

        Raises:
            DeviceFull: no memory for the tables.
        """
        slot = Slot.of(sizes)
        offsets = np.array([*slot.data, *slot.scales], np.uint64)[:, None]
        addresses = (np.array(starts, np.uint64)[None, :] + offsets).reshape(-1)
        tables = device.allocate(addresses.nbytes + slots.nbytes)
        stream = device.stream()
        stream.upload(tables.address, addresses)
        stream.upload(tables.address + addresses.nbytes, slots)
        stream.synchronize()
        at = [tables.address + 8 * len(starts) * place for place in range(6)]
        gate, up, down = (
            GpuMatrix(
                form,
                rows,
                columns,
                at[place],
                at[3 + place] if form.scale_tile else 0,
                grids.address(form.name),
            )
            for place, (form, rows, columns) in enumerate(sizes.matrices)
        )
        return cls(
            sizes,
            gate,
            up,
            down,
            tables.address + addresses.nbytes,
            len(slots),
            min(len(starts), len(slots)),
            limit,
            top_k,
            tables,
        )


def rounded_for(stream: Stream, layer: LayerOnCard, rows: RowsOnCard, at: Areas) -> RowsOnCard:
    """The rows as the layer's gate and up take them.

    Raises:
        ValueError: rows that came rounded otherwise than they want.
    """
    rounded = dict(rows.rounded)
    for matrix in (layer.gate, layer.up):
        block = matrix.form.rounding_block
        if rows.x is None and block not in rounded:
            raise ValueError(f"rows rounded otherwise than experts in {layer.sizes.forms.name} want")
        if block and block not in rounded:
            assert rows.x is not None
            rounded[block] = to = at.rounded(block)
            round_rows(stream, rows.x, to, block, rows.num_rows * matrix.columns // block)
    return replace(rows, rounded=rounded)


def enqueue_sum(
    stream: Stream,
    layer: LayerOnCard,
    rows: RowsOnCard,
    at: Areas,
    *,
    slots: int | None = None,
    most_groups: int | None = None,
    adds: bool = False,
) -> SumOnCard:
    """Ask for the sum of those of the rows' experts that have a slot.

    Args:
        rows: as `rounded_for` gives them, at most as many as the areas have room for.
        slots: another table than the layer's, with at most `most_groups` experts in it.
        adds: to what the areas hold of these rows already.
    """
    T, k, H = rows.num_rows, rows.top_k, layer.sizes.hidden
    flags = at.values + 4 * T * H
    grouping = GroupArgs(
        expert_ids=rows.expert_ids,
        slots=layer.slots if slots is None else slots,
        group_starts=at.group_starts,
        group_slots=at.group_slots,
        counts=at.counts,
        entry_rows=at.entry_rows,
        places=at.places,
        flags=None if adds else flags,
        rows=T,
        top_k=k,
        num_experts=layer.num_experts,
    )
    stream.launch("group_entries", (1, 1, 1), -(-layer.num_experts // 32) * 32, grouping)
    most = min(layer.most_groups if most_groups is None else most_groups, T * k)
    of_rows = GpuGroups(most, at.entry_rows, at.counts, at.group_starts, at.group_slots)
    of_entries = replace(of_rows, rows=0)
    for matrix, out in ((layer.gate, at.gate), (layer.up, at.up)):
        _multiply(stream, matrix, _inputs(rows, matrix), out, T, T * k / layer.num_experts, of_rows)
    I, block = layer.sizes.inner, layer.down.form.rounding_block  # noqa: E741
    # What the kernels between two products read they may overwrite in place.
    between = at.between_rounded if block else GpuRows(x=at.gate)
    halves = Halves(at.gate, at.up, T * k, I, I, num_rows=at.num_entries)
    swiglu(stream, halves, layer.limit, between, block)
    _multiply(stream, layer.down, between, at.outputs, T, T * k / layer.num_experts, of_entries)
    adding = AddOnGridArgs(
        y=at.outputs,
        places=at.places,
        weights=rows.weights,
        scale_exponents=rows.scale_exponents,
        out=at.values,
        flags=flags,
        rows=T,
        hidden=H,
        top_k=k,
        largest=largest_steps((2**31 - 1) // layer.top_k),
        adds=adds,
    )
    stream.launch("add_on_grid", (-(-H // _GRID_THREADS), T, 1), _GRID_THREADS, adding)
    return SumOnCard(at.values, flags)


def _multiply(
    stream: Stream,
    matrix: GpuMatrix,
    rows: GpuRows,
    out: int,
    num_rows: int,
    rows_each: float,
    groups: GpuGroups,
) -> None:
    """By either family of kernels, which give the same bits. `rows_each`: of an expert, on the average."""
    if matrix.form.rounding_block and rows_each >= TILES_FROM_ROWS:
        tiles(stream, matrix, rows, out, min(num_rows, math.ceil(2 * rows_each)), groups=groups)
    else:
        linear(stream, matrix, rows, out, num_rows, groups=groups)


def _inputs(rows: RowsOnCard, matrix: GpuMatrix) -> GpuRows:
    block = matrix.form.rounding_block
    return rows.rounded[block] if block else GpuRows(x=rows.x or 0)
