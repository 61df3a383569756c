"""What our kernels reach with experts in some form of weights, by rows of an expert."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import partial
from mmap import mmap
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from placement.errors import InputError, PotluckError
from placement.given.probe_figures import FormRate
from placement.weight_format import FORMATS, WeightFormat
from transport.expert_rows import ExpertRows
from workers.formats.open_model import open_model
from workers.kernels import ExpertMatrices, ExpertWeights, moe_partial_sum
from workers.kernels.matrix import TORCH_DTYPES
from workers.probe.clocks import usual_s, woken_s
from workers.probe.memory import far_bytes
from workers.probe.random_blocks import TYPES, random_blocks
from workers.probe.time_left import TimeLeft

HIDDEN, TOP_K = 4096, 8
ROWS = (1, 2, 4, 16, 64)
DEFAULT_FORMS = ("bfloat16", "q4_k", "q6_k", "q8_0")
_EXPONENT = -24
_FEW_FLOPS = 6e8
"""Arithmetic bounds several rows: so many tell its rate, where one row needs more bytes than caches hold."""
_FEW_BYTES = 32 << 20
"""More than most caches hold, and what a request of a decode step reads."""
_SAMPLE_BLOCKS = 16_384


def form_named(name: str) -> WeightFormat:
    """Raises InputError for a form that cannot be measured here."""
    if name not in TYPES or name not in FORMATS:
        known = ", ".join(form for form in TYPES if form in FORMATS)
        raise InputError(f"form {name!r}: expected one of {known}")
    return FORMATS[name]


@dataclass(frozen=True, slots=True)
class Width:
    """Of an expert: kernels read long rows faster than short ones."""

    hidden: int = HIDDEN
    inner: int = 1280

    @property
    def flops_a_row(self) -> int:
        return 2 * 3 * self.hidden * self.inner

    def suits(self, form: WeightFormat) -> bool:
        """Whether the form has whole blocks in rows so long."""
        return self.hidden % form.block_weights == self.inner % form.block_weights == 0


def width_of(folder: Path) -> Width:
    """Of the model in a folder or file, of Step-3.5-Flash where there is none that opens."""
    try:
        config = open_model(folder).config
    except PotluckError:
        return Width()
    return Width(config.hidden_size, config.moe_intermediate_size)


@dataclass(frozen=True, slots=True)
class SomeExperts:
    """Random experts in one form, more bytes than caches hold, at least two of them."""

    form: WeightFormat
    width: Width
    weights: ExpertWeights
    num_experts: int

    @classmethod
    def make(
        cls, form: WeightFormat, num_bytes: int | None = None, width: Width | None = None
    ) -> SomeExperts:
        """`num_bytes`: of all together, about; None for more than caches hold."""
        if width is None or not width.suits(form):
            width = Width()
        each = 3 * width.inner * form.row_bytes(width.hidden)
        count = max(2, -(-(far_bytes() if num_bytes is None else num_bytes) // each))
        rng = np.random.default_rng(0)
        sample = random_blocks(form.name, _SAMPLE_BLOCKS, 0.02, rng).reshape(-1)
        shapes = ((width.inner, width.hidden), (width.inner, width.hidden), (width.hidden, width.inner))
        gate, up, down = (_matrices(form, count, *shape, sample) for shape in shapes)
        slots = torch.arange(count, dtype=torch.int32)
        weights = ExpertWeights(slots, gate, up, down, limit=0.0, top_k=TOP_K)
        return cls(form, width, weights, count)

    def rows(self, rows_an_expert: int, experts: int) -> ExpertRows:
        """`rows_an_expert` rows for each of the first `experts`, one expert a row."""
        ids = np.full((rows_an_expert * experts, TOP_K), -1, np.int32)
        ids[:, 0] = np.repeat(np.arange(experts, dtype=np.int32), rows_an_expert)
        return probe_rows(ids, self.width.hidden)


def probe_rows(ids: NDArray[np.int32], hidden_size: int = HIDDEN) -> ExpertRows:
    """Rows that choose `ids` [rows, top_k], -1 for none."""
    hidden = np.random.default_rng(1).standard_normal((len(ids), hidden_size), np.float32)
    weights = np.full(ids.shape, 0.125, np.float32)
    return ExpertRows(hidden, ids, weights, np.full(len(ids), _EXPONENT, np.int32))


def form_rate(form: WeightFormat, seconds: float, width: Width | None = None) -> FormRate:
    """Measured with the threads in use, for about so long; making the experts counts.

    `width`: of the experts, where it suits the form.
    """
    left = TimeLeft(seconds, {"making": 0.1} | {str(number): 1.0 for number in ROWS})
    left.next("making")
    some = SomeExperts.make(form, width=width)
    flops_a_row = some.width.flops_a_row
    flops_per_s = []
    for number in ROWS:
        experts = some.num_experts
        if number > 1:
            experts = max(2, min(experts, round(_FEW_FLOPS / number / flops_a_row)))
        call = partial(moe_partial_sum, some.weights, some.rows(number, experts))
        spent_s = usual_s(call, left.next(str(number)), least_turns=1)
        flops_per_s.append(number * experts * flops_a_row / spent_s)
    return FormRate(form=form.name, rows=ROWS, flops_per_s=tuple(flops_per_s))


def wake_s(form: WeightFormat, seconds: float, width: Width | None = None) -> float:
    """How much longer a request of one row for a few experts takes after a pause; making them counts."""
    until = time.perf_counter() + seconds
    some = SomeExperts.make(form, _FEW_BYTES, width)
    call = partial(moe_partial_sum, some.weights, some.rows(1, some.num_experts))
    return woken_s(call, max(0.0, until - time.perf_counter()))


def request_s() -> float:
    """A kernel call that finds no expert to compute."""
    some = SomeExperts.make(FORMATS["float32"], 1)
    rows = probe_rows(np.full((1, TOP_K), -1, np.int32))
    return usual_s(partial(moe_partial_sum, some.weights, rows), 0.05)


def _matrices(
    form: WeightFormat, count: int, rows: int, columns: int, sample: NDArray[np.uint8]
) -> ExpertMatrices:
    shape = (count, rows, form.row_bytes(columns))
    num_bytes = math.prod(shape)
    # Mapped like a model's file, in small pages: numpy's own memory has large ones and is read faster.
    data = np.frombuffer(mmap(-1, num_bytes), np.uint8)
    for start in range(0, num_bytes, len(sample)):
        part = data[start : start + len(sample)]
        part[:] = sample[: len(part)]
    dtype = TORCH_DTYPES.get(form)
    tensor = torch.from_numpy(data.reshape(shape))
    return ExpertMatrices(form, rows, columns, tensor if dtype is None else tensor.view(dtype))
