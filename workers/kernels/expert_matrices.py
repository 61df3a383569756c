"""The weights of a layer's experts as the kernels read them: any form of the kernels' table, mixed freely."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from placement.weight_format import BFLOAT16, FLOAT16, FLOAT32, WeightFormat
from workers.kernels import native
from workers.kernels.native import ExpertMatricesArgs, ExpertMatrixArgs, check

TORCH_DTYPES = {FLOAT32: torch.float32, BFLOAT16: torch.bfloat16, FLOAT16: torch.float16}
"""Of the forms that torch has a dtype for; the others, in blocks, are bytes."""


@dataclass(frozen=True, slots=True, eq=False)
class ExpertMatrices:
    """One matrix (gate, up or down) of each of n experts of a layer.

    Attributes:
        rows, columns: of one expert's matrix.
        data: contiguous on the CPU: [n, rows, columns] in the form's torch dtype, or for forms in blocks
            uint8 [n, rows, bytes of a row].
    """

    form: WeightFormat
    rows: int
    columns: int
    data: Tensor

    def __post_init__(self) -> None:
        dtype, width = _row(self.form, self.columns)
        if self.data.shape[1:] != (self.rows, width) or self.data.dtype is not dtype:
            raise ValueError(
                f"expert matrices in {self.form.name}: expected {dtype} [n, {self.rows}, {width}], found "
                f"{self.data.dtype} {list(self.data.shape)}"
            )

    @classmethod
    def empty(cls, form: WeightFormat, num_experts: int, rows: int, columns: int) -> ExpertMatrices:
        """Raises InputError where a row is no whole number of blocks."""
        dtype, width = _row(form, columns)
        return cls(form, rows, columns, torch.empty((num_experts, rows, width), dtype=dtype))

    @classmethod
    def of(cls, data: Tensor) -> ExpertMatrices:
        """From a tensor [n, rows, columns] in a dtype that is a form of its own."""
        form = next(form for form, dtype in TORCH_DTYPES.items() if dtype is data.dtype)
        return cls(form, data.shape[1], data.shape[2], data)

    @property
    def num_experts(self) -> int:
        return self.data.shape[0]


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
        return self.gate.data.nbytes + self.up.data.nbytes + self.down.data.nbytes


def _row(form: WeightFormat, columns: int) -> tuple[torch.dtype, int]:
    """A row's dtype and number of elements."""
    dtype = TORCH_DTYPES.get(form)
    return (torch.uint8, form.row_bytes(columns)) if dtype is None else (dtype, columns)


def _argument(matrices: ExpertMatrices) -> ExpertMatrixArgs:
    form = matrices.form
    index = native.format_index(form.name.encode(), form.block_weights, form.block_bytes)
    if index < 0:
        raise ValueError(f"the kernels do not compute with weights in {form.name}")
    return ExpertMatrixArgs(
        data=check(matrices.data, matrices.data.dtype).data_ptr(),
        rows=matrices.rows,
        columns=matrices.columns,
        row_bytes=form.row_bytes(matrices.columns),
        format=index,
    )
