"""Random products of rows and matrices, computed on the card and by the CPU kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from orchestrator.kernels import linear as on_cpu
from placement.weight_format import FORMATS, WeightFormat
from workers.gpu.device import Device, Memory, Stream
from workers.gpu.grids import Grids
from workers.gpu.linear import GpuGroups, GpuMatrix, GpuRows, linear
from workers.kernels import Matrices, round_rows
from workers.kernels.matrix import TORCH_DTYPES, Matrix

HALVES = {
    "q8_0": (0,),
    "q6_k": (208,),
    "q5_k": (0, 2),
    "q4_k": (0, 2),
    "q3_k": (108,),
    "q2_k": (80, 82),
    "q5_1": (0, 2),
    "q5_0": (0,),
    "q4_1": (0, 2),
    "q4_0": (0,),
    "iq4_nl": (0,),
    "iq4_xs": (0,),
    "iq3_s": (0,),
    "iq3_xxs": (0,),
    "iq2_s": (0,),
    "iq2_xs": (0,),
    "iq2_xxs": (0,),
}
"""Where a block has float16 numbers (ggml-common.h)."""

_ODD_HALVES = np.array([0, 0x8000, 1, 0x8001, 0x3FF, 0x400, 0x7BFF, 0xFBFF, 0x3C00, 0x0200], np.uint16)
_ODD_FLOATS = np.array([np.inf, -np.inf, np.nan, 3.4e38], np.float32)
_NOT_FINITE = np.array([0x7C00, 0xFC00, 0x7E01], np.uint16)


_Upload = Callable[[NDArray[np.generic]], int]


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """Groups of rows, each with a matrix. `entry_rows`: of each group, rows of x."""

    form: WeightFormat
    x: NDArray[np.float32]
    matrices: tuple[Matrix, ...]
    entry_rows: tuple[NDArray[np.int32], ...]
    slots: tuple[int, ...]


def random_case(seed: int, form_name: str | None = None) -> Case:
    """Of any form or a given one; shapes, sizes of groups and numbers of every kind."""
    rng = np.random.default_rng(seed)
    names = sorted(FORMATS)
    form = FORMATS[form_name or names[int(rng.integers(len(names)))]]
    blocks = int(rng.integers(1, 20)) if form.rounding_block == 256 else int(rng.integers(1, 75))
    columns = form.rounding_block * blocks or int(rng.integers(1, 700))
    rows_out, num_rows = int(rng.integers(1, 20)), int(rng.integers(1, 13))
    matrices = tuple(
        random_matrix(form, rows_out, columns, rng, odd=bool(rng.random() < 0.3))
        for _ in range(int(rng.integers(1, 4)))
    )
    sizes = [int(rng.integers(1, 21)) if rng.random() < 0.3 else 1 for _ in range(int(rng.integers(1, 5)))]
    return Case(
        form,
        random_rows(num_rows, columns, rng),
        matrices,
        tuple(rng.integers(num_rows, size=size, dtype=np.int32) for size in sizes),
        tuple(int(rng.integers(len(matrices))) for _ in sizes),
    )


def random_rows(num_rows: int, columns: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Rows of very different sizes; some of zeros, of numbers that round to +-127, or not finite."""
    x = rng.standard_normal((num_rows, columns)).astype(np.float32)
    x *= np.float32(2.0) ** rng.integers(-20, 20, (num_rows, 1))
    for row in range(num_rows):
        kind = rng.integers(16)
        if kind == 0:
            x[row] = 0
        elif kind == 1:
            x[row] = np.where(rng.random(columns) < 0.5, 3, -3)
        elif kind == 2:
            x[row] *= np.float32(1e-38)
        elif kind == 3:
            x[row, int(rng.integers(columns))] = rng.choice(_ODD_FLOATS)
    return x


def random_matrix(
    form: WeightFormat, rows: int, columns: int, rng: np.random.Generator, *, odd: bool = False
) -> Matrix:
    """Any bytes, with sensible scales. `odd`: some are zero, subnormal, infinite or not a number."""
    row_bytes = form.row_bytes(columns)
    data = rng.integers(256, size=(rows, row_bytes), dtype=np.uint8)
    if form.block_weights > 1:
        blocks = data.reshape(-1, form.block_bytes)
        if form.name == "mxfp4" and not odd:
            blocks[:, 0] = rng.integers(110, 140, len(blocks))
        for at in HALVES.get(form.name, ()):
            values = (rng.standard_normal(len(blocks)) * 0.01).astype(np.float16).view(np.uint16)
            if odd:
                values = np.where(rng.random(len(blocks)) < 0.3, rng.choice(_ODD_HALVES, len(blocks)), values)
                few = rng.random(len(blocks)) < 0.02
                values = np.where(few, rng.choice(_NOT_FINITE, len(blocks)), values)
            blocks[:, at : at + 2] = values.astype(np.uint16)[:, None].view(np.uint8).reshape(-1, 2)
    elif not odd:
        values = (rng.standard_normal((rows, columns)) * 0.05).astype(np.float32)
        tensor = torch.from_numpy(values).to(TORCH_DTYPES.get(form, torch.float8_e4m3fn)).contiguous()
        data = tensor.view(torch.uint8).numpy().reshape(rows, row_bytes)
    tensor = torch.from_numpy(data)
    if form in TORCH_DTYPES:
        tensor = tensor.view(TORCH_DTYPES[form])
    scales = None
    if form.scale_tile:
        shape = (-(-rows // form.scale_tile), -(-columns // form.scale_tile))
        scales = torch.from_numpy(rng.standard_normal(shape).astype(np.float32))
    return Matrix(form, rows, columns, tensor, scales)


def expected(case: Case) -> NDArray[np.float32]:
    """[entries, rows_out] by the CPU kernels."""
    x = torch.from_numpy(case.x)
    return np.concatenate(
        [
            on_cpu(x[torch.from_numpy(rows).long()], Matrices.of(case.matrices[slot])).numpy()
            for rows, slot in zip(case.entry_rows, case.slots, strict=True)
        ]
    )


def computed(
    case: Case,
    device: Device,
    grids: Grids,
    *,
    grouped: bool = True,
    multiply: Callable[..., None] = linear,
    most: int | None = None,
) -> NDArray[np.float32]:
    """[entries, rows_out] on the card.

    Args:
        grouped: otherwise as a linear layer, whose entries are all rows.
        multiply: takes what `linear` takes.
        most: the rows a group has that `multiply` is told, where not the most that there are.
    """
    stream = device.stream()
    held: list[Memory] = []

    def up(array: NDArray[np.generic]) -> int:
        return _uploaded(device, stream, np.ascontiguousarray(array), held)

    form = case.form
    starts = np.cumsum([0, *map(len, case.entry_rows)], dtype=np.int32)
    entries = int(starts[-1])
    rows = _rows_on_card(case.x, form, up)
    addresses = [up(_bytes(matrix.data)) for matrix in case.matrices]
    scales = [up(matrix.scales.numpy()) for matrix in case.matrices if matrix.scales is not None]
    matrix = GpuMatrix(
        form,
        case.matrices[0].rows,
        case.matrices[0].columns,
        table=up(np.array(addresses, np.uint64)),
        scale_table=up(np.array(scales, np.uint64)) if scales else 0,
        grid=grids.address(form.name),
    )
    groups = GpuGroups(
        most=len(case.slots) + 2,
        rows=up(np.concatenate(case.entry_rows)),
        count=up(np.array([len(case.slots)], np.int32)),
        starts=up(starts),
        slots=up(np.array(case.slots, np.int32)),
    )
    stride = matrix.rows + 3
    out = device.allocate(4 * entries * stride)
    most = most or max(map(len, case.entry_rows))
    which = groups if grouped else None
    multiply(stream, matrix, rows, out.address, most, groups=which, out_stride=stride)
    found = device.pinned(4 * entries * stride).view(np.float32).reshape(entries, stride)
    stream.download(found, out.address)
    stream.synchronize()
    return found[:, : matrix.rows].copy()


def same_bits(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> bool:
    """Whether all bits are equal; of what is not a number, that it is none."""
    neither = np.isnan(found) & np.isnan(wanted)
    return bool(np.all((found.view(np.uint32) == wanted.view(np.uint32)) | neither))


def _rows_on_card(x: NDArray[np.float32], form: WeightFormat, up: _Upload) -> GpuRows:
    if not form.rounding_block:
        return GpuRows(x=up(x))
    (part,) = round_rows(x, (form.rounding_block,)).parts
    sums = part.q.reshape(len(x), -1, 16).astype(np.int16).sum(axis=2, dtype=np.int16)
    return GpuRows(q=up(part.q), scales=up(part.scales), sums=up(sums))


def _bytes(data: torch.Tensor) -> NDArray[np.uint8]:
    return data.view(torch.uint8).numpy().reshape(-1)


def _uploaded(device: Device, stream: Stream, array: NDArray[np.generic], held: list[Memory]) -> int:
    memory = device.allocate(array.nbytes)
    held.append(memory)
    stream.upload(memory.address, array)
    return memory.address
