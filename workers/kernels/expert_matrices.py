"""The weights of a layer's experts as the kernels read them: any form of the kernels' table, mixed freely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from placement.weight_format import WeightFormat
from workers.kernels.matrix import TORCH_DTYPES, check_scales, form_of, format_index, row_of
from workers.kernels.native import ExpertMatricesArgs, ExpertMatrixArgs, check

__all__ = ["TORCH_DTYPES", "ExpertMatrices", "ExpertWeights"]


@dataclass(frozen=True, slots=True, eq=False)
class ExpertMatrices:
    """One matrix (gate, up or down) of each of n experts of a layer, by slot.

    Attributes:
        rows, columns: of one expert's matrix.
        data: n tensors on the CPU, each contiguous wherever it lies: [rows, columns] in the form's torch
            dtype, else uint8 [rows, bytes of a row]. One tensor [n, rows, ...] is n of them.
        scales: of a form with `scale_tile`, n tensors as `Matrix` has them; else None.
        addresses: uint64 [n] of the data, and of the scales; what owns `data` may move a slot by writing
            here.

    Raises:
        ValueError: data or scales of another shape or dtype.
    """

    form: WeightFormat
    rows: int
    columns: int
    data: Tensor | Sequence[Tensor]
    scales: Tensor | Sequence[Tensor] | None = None
    addresses: NDArray[np.uint64] = field(init=False)
    scale_addresses: NDArray[np.uint64] | None = field(init=False)

    def __post_init__(self) -> None:
        dtype, width = row_of(self.form, self.columns)
        if isinstance(self.data, Tensor):
            stacked, count = self.data, len(self.data)
            if stacked.shape[1:] != (self.rows, width) or stacked.dtype is not dtype:
                raise self._wrong(dtype, width, stacked.dtype, list(stacked.shape))
            first = check(stacked[0], dtype).data_ptr() if count else 0
            step = stacked.stride(0) * stacked.element_size()
            addresses = np.uint64(first) + np.arange(count, dtype=np.uint64) * np.uint64(step)
        else:
            for tensor in self.data:
                if tensor.shape != (self.rows, width) or tensor.dtype is not dtype:
                    raise self._wrong(dtype, width, tensor.dtype, list(tensor.shape))
            addresses = np.array([check(tensor, dtype).data_ptr() for tensor in self.data], np.uint64)
        object.__setattr__(self, "addresses", addresses)
        scales = None
        if self.scales is not None or self.form.scale_tile:
            each = [None] * len(self.data) if self.scales is None else list(self.scales)
            if len(each) != len(self.data):
                raise ValueError(f"expert matrices: {len(self.data)} experts, scales of {len(each)}")
            for of_expert in each:
                check_scales(self.form, self.rows, self.columns, of_expert)
            scales = np.array(
                [of_expert.data_ptr() for of_expert in each if of_expert is not None], np.uint64
            )
        object.__setattr__(self, "scale_addresses", scales)

    def _wrong(self, dtype: torch.dtype, width: int, found: torch.dtype, shape: list[int]) -> ValueError:
        return ValueError(
            f"expert matrices in {self.form.name}: expected {dtype} [{self.rows}, {width}] of each, found "
            f"{found} {shape}"
        )

    @classmethod
    def empty(cls, form: WeightFormat, num_experts: int, rows: int, columns: int) -> ExpertMatrices:
        """Raises InputError where a row is no whole number of blocks."""
        dtype, width = row_of(form, columns)
        scales, tile = None, form.scale_tile
        if tile:
            scales = torch.empty(num_experts, -(-rows // tile), -(-columns // tile))
        return cls(form, rows, columns, torch.empty((num_experts, rows, width), dtype=dtype), scales)

    @classmethod
    def of(cls, data: Tensor) -> ExpertMatrices:
        """From a tensor [n, rows, columns] in a dtype that is a form of its own."""
        return cls(form_of(data), data.shape[1], data.shape[2], data)

    @property
    def num_experts(self) -> int:
        return len(self.data)

    @property
    def nbytes(self) -> int:
        """Of all experts, scales included."""
        return self.num_experts * self.form.matrix_bytes(self.rows, self.columns)


@dataclass(frozen=True, slots=True, eq=False)
class ExpertWeights:
    """Some experts of one layer. What the kernel's calls need of them is put together once, here.

    Attributes:
        slots: int32 [E]: where each expert of the layer lies in the matrices, -1 for not here.
        gate, up: of [I, H] each, down: of [H, I].
        limit: the SwiGLU clamp, 0 for none.
        top_k: the model's experts per token. An output beyond (2^31 - 1) // top_k grid units could overflow
            a sum: the kernel flags its row.
        arguments: the same for the kernel.

    Raises:
        ValueError: shapes that do not fit, a form that the kernels do not compute with.
    """

    slots: Tensor
    gate: ExpertMatrices
    up: ExpertMatrices
    down: ExpertMatrices
    limit: float
    top_k: int
    arguments: ExpertMatricesArgs = field(init=False)

    def __post_init__(self) -> None:
        gate, up, down = self.gate, self.up, self.down
        shapes = [(m.num_experts, m.rows, m.columns) for m in (gate, up, down)]
        n, intermediate, hidden = shapes[0]
        if shapes != [(n, intermediate, hidden), (n, intermediate, hidden), (n, hidden, intermediate)]:
            raise ValueError(f"expert weights: gate, up and down of shapes that do not fit: {shapes}")
        if n and not -1 <= int(self.slots.min()) <= int(self.slots.max()) < n:
            raise ValueError(f"expert weights: slots beyond the {n} experts there are")
        arguments = ExpertMatricesArgs(
            gate=_argument(gate),
            up=_argument(up),
            down=_argument(down),
            slots=check(self.slots, torch.int32).data_ptr(),
            num_experts=self.slots.numel(),
            limit=self.limit,
            max_magnitude=(2**31 - 1) // self.top_k,
        )
        object.__setattr__(self, "arguments", arguments)

    @property
    def held_bytes(self) -> int:
        """Memory that the matrices take."""
        return self.gate.nbytes + self.up.nbytes + self.down.nbytes


def _argument(matrices: ExpertMatrices) -> ExpertMatrixArgs:
    scales = matrices.scale_addresses
    return ExpertMatrixArgs(
        data=matrices.addresses.ctypes.data,
        scales=None if scales is None else scales.ctypes.data,
        rows=matrices.rows,
        columns=matrices.columns,
        row_bytes=matrices.form.row_bytes(matrices.columns),
        format=format_index(matrices.form),
    )
