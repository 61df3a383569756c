"""Experts in every form of the kernels' table, mixed as files mix them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.kernels import linear, swiglu
from placement.errors import InputError
from placement.weight_format import BFLOAT16, FLOAT16, FLOAT32, FORMATS, FP8_E4M3, Q8_0, WeightFormat
from tests.workers.quantised import dequantised, sized_blocks
from tests.workers.torch_oracle import torch_partial_sum
from transport.expert_rows import ExpertRows
from workers import fixed_point
from workers.kernels import ExpertMatrices, ExpertWeights, Matrices, Matrix, moe_partial_sum
from workers.kernels.expert_matrices import TORCH_DTYPES

SameBits = Callable[[Callable[[], tuple[Any, ...]]], None]
EXPERTS, HIDDEN, INNER, TOP_K = 5, 256, 512, 3
Q4_K, Q5_K, IQ3_S, IQ4_XS = (FORMATS[name] for name in ("q4_k", "q5_k", "iq3_s", "iq4_xs"))
PLAIN = [(form, form, form) for form in (FLOAT32, BFLOAT16, FLOAT16, FP8_E4M3)] + [
    (FLOAT32, FLOAT16, BFLOAT16)
]
MIXES = [
    *((form, form, form) for form in FORMATS.values()),
    (FLOAT32, FLOAT16, BFLOAT16),
    (Q8_0, FLOAT16, BFLOAT16),
    (FLOAT32, Q8_0, FLOAT16),
    (Q4_K, Q4_K, Q5_K),
    (IQ3_S, IQ3_S, IQ4_XS),
    (Q4_K, Q8_0, Q8_0),
]


@functools.cache
def in_form(form: WeightFormat, rows: int, columns: int, seed: int) -> ExpertMatrices:
    """Random weights, rounded to the form; of quantised ones random blocks; made once, to be read only."""
    if form not in TORCH_DTYPES and form != FP8_E4M3:
        blocks = sized_blocks(form, EXPERTS * rows, columns, seed, columns**-0.5).reshape(EXPERTS, rows, -1)
        return ExpertMatrices(form, rows, columns, torch.from_numpy(blocks))
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(EXPERTS, rows, columns, generator=generator) / columns**0.5
    if form in TORCH_DTYPES:
        return ExpertMatrices.of(data.to(TORCH_DTYPES[form]))
    tiles = torch.rand(EXPERTS, -(-rows // 128), -(-columns // 128), generator=generator) + 0.5
    return ExpertMatrices(form, rows, columns, data.to(torch.float8_e4m3fn).view(torch.uint8), tiles)


def widened(matrices: ExpertMatrices) -> ExpertMatrices:
    """The numbers that the form stands for, in float32, as torch and the gguf library read them."""
    assert isinstance(matrices.data, Tensor)
    if matrices.form in TORCH_DTYPES:
        return ExpertMatrices.of(matrices.data.float())
    if matrices.form == FP8_E4M3:
        assert isinstance(matrices.scales, Tensor)
        tiles = matrices.scales.repeat_interleave(128, 1).repeat_interleave(128, 2)
        numbers = matrices.data.view(torch.float8_e4m3fn).float()
        return ExpertMatrices.of((numbers * tiles[:, : matrices.rows, : matrices.columns]).contiguous())
    numbers = torch.from_numpy(
        dequantised(matrices.form, matrices.data.numpy().reshape(-1, matrices.data.shape[2]))
    )
    return ExpertMatrices.of(numbers.view(EXPERTS, matrices.rows, matrices.columns))


def layer(*kinds: ExpertMatrices, limit: float = 0.0) -> ExpertWeights:
    return ExpertWeights(torch.arange(EXPERTS, dtype=torch.int32), *kinds, limit=limit, top_k=TOP_K)


def experts(mix: tuple[WeightFormat, ...], inner: int = INNER) -> ExpertWeights:
    shapes = ((inner, HIDDEN), (inner, HIDDEN), (HIDDEN, inner))
    return layer(
        *(in_form(form, *shape, seed) for seed, (form, shape) in enumerate(zip(mix, shapes, strict=True)))
    )


def in_float32(held: ExpertWeights) -> ExpertWeights:
    return layer(*map(widened, (held.gate, held.up, held.down)), limit=held.limit)


def copied(matrices: ExpertMatrices) -> ExpertMatrices:
    assert isinstance(matrices.data, Tensor)
    return replace(matrices, data=matrices.data.clone())


def one(matrices: ExpertMatrices, expert: int) -> Matrix:
    scales = None if matrices.scales is None else matrices.scales[expert]
    return Matrix(matrices.form, matrices.rows, matrices.columns, matrices.data[expert], scales)


def asked(num_rows: int) -> ExpertRows:
    rng = np.random.default_rng(num_rows)
    hidden = rng.standard_normal((num_rows, HIDDEN), dtype=np.float32)
    ids = np.stack([rng.permutation(EXPERTS)[:TOP_K] for _ in range(num_rows)]).astype(np.int32)
    weights = rng.random((num_rows, TOP_K), dtype=np.float32)
    return ExpertRows(hidden, ids, weights, fixed_point.scale_exponents(torch.from_numpy(hidden)))


def name_of(mix: tuple[WeightFormat, ...]) -> str:
    return "/".join(form.name for form in mix)


@pytest.mark.parametrize("mix", PLAIN, ids=name_of)
@pytest.mark.parametrize("num_rows", [1, 2, 7, 60])
def test_a_form_without_blocks_computes_the_bits_of_its_numbers_in_float32(
    mix: tuple[WeightFormat, ...], num_rows: int
) -> None:
    held, rows = experts(mix), asked(num_rows)
    values, saturated = moe_partial_sum(held, rows)
    assert not saturated.any()
    assert np.array_equal(values, moe_partial_sum(in_float32(held), rows)[0])


@pytest.mark.parametrize("mix", PLAIN, ids=name_of)
def test_the_sum_is_close_to_plain_torch_on_the_same_numbers(mix: tuple[WeightFormat, ...]) -> None:
    held, rows = experts(mix), asked(9)
    values, _ = moe_partial_sum(held, rows)
    plain = torch_partial_sum(in_float32(held), rows)
    difference = fixed_point.to_float32(values - plain.values, rows.scale_exponents)
    assert difference.abs().max() < 3e-6


@pytest.mark.parametrize("mix", MIXES, ids=name_of)
@pytest.mark.parametrize("num_rows", [1, 21])
def test_a_layers_share_is_its_products_one_by_one(mix: tuple[WeightFormat, ...], num_rows: int) -> None:
    """gate, up, SwiGLU, down, the weight, the grid: the same bits as each step by itself."""
    held, rows = experts(mix), asked(num_rows)
    x = torch.from_numpy(rows.hidden)
    expected = np.zeros((num_rows, HIDDEN), np.int64)
    for expert in range(EXPERTS):
        gate, up, down = (Matrices.of(one(kind, expert)) for kind in (held.gate, held.up, held.down))
        y = linear(swiglu(linear(x, gate), linear(x, up), held.limit), down).numpy()
        for t, place in zip(*np.nonzero(rows.expert_ids == expert), strict=True):
            product = (rows.weights[t, place] * y[t]).astype(np.float64)
            expected[t] += np.rint(np.ldexp(product, -rows.scale_exponents[t])).astype(np.int64)
    values, saturated = moe_partial_sum(held, rows)
    assert not saturated.any()
    assert np.array_equal(values, expected)


@pytest.mark.parametrize("mix", MIXES, ids=name_of)
def test_the_bits_are_the_same_everywhere_and_in_any_batch(
    mix: tuple[WeightFormat, ...], same_bits_everywhere: SameBits
) -> None:
    held, rows = experts(mix), asked(23)
    same_bits_everywhere(lambda: moe_partial_sum(held, rows))
    together, _ = moe_partial_sum(held, rows)
    for part in (np.arange(1), np.arange(1, 9), np.arange(9, 23)):
        assert np.array_equal(moe_partial_sum(held, rows.at(part))[0], together[part])


@pytest.mark.parametrize("mix", MIXES, ids=name_of)
def test_experts_may_lie_anywhere(mix: tuple[WeightFormat, ...]) -> None:
    """A table of addresses: copies in any order of memory give the same sum."""
    held, rows = experts(mix), asked(7)
    scattered = layer(
        *(
            ExpertMatrices(
                kind.form,
                kind.rows,
                kind.columns,
                [kind.data[i].clone() for i in range(EXPERTS)],
                None if kind.scales is None else [kind.scales[i].clone() for i in range(EXPERTS)],
            )
            for kind in (held.gate, held.up, held.down)
        )
    )
    assert np.array_equal(moe_partial_sum(scattered, rows)[0], moe_partial_sum(held, rows)[0])


@pytest.mark.parametrize("magnitudes", [(0, 0x400), (0x400, 0x7C00), (0, 0x7C00)])
def test_every_finite_float16_widens_exactly(
    magnitudes: tuple[int, int], same_bits_everywhere: SameBits
) -> None:
    """Subnormal numbers too, as weights and as scales; rows that end within sixteen lanes too."""
    rng = np.random.default_rng(1)

    def bits(*shape: int) -> NDArray[np.uint16]:
        return (rng.integers(*magnitudes, shape) | rng.integers(0, 2, shape) << 15).astype(np.uint16)

    kind = ExpertMatrices.of(torch.from_numpy(bits(EXPERTS, 64, HIDDEN - 3).view(np.float16)))
    rows = asked(4)
    largest = float(widened(kind).data[...].abs().max())
    rows = rows._replace(hidden=np.ascontiguousarray(rows.hidden[:, : kind.columns] / np.float32(largest)))
    down = ExpertMatrices.of(torch.randn(EXPERTS, kind.columns, 64))
    held = layer(kind, kind, down)
    rows = rows._replace(scale_exponents=np.full(4, -17, np.int32))
    values, saturated = moe_partial_sum(held, rows)
    assert not saturated.any()
    assert values.any()
    assert np.array_equal(values, moe_partial_sum(in_float32(held), rows)[0])
    same_bits_everywhere(lambda: moe_partial_sum(held, rows))


def test_every_8_bit_float_widens_exactly() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    finite = codes[(codes & 0x7F) != 0x7F]
    columns = len(finite)
    weight = Matrix(FP8_E4M3, 1, columns, finite[None], torch.ones(1, 2))
    found = linear(torch.eye(columns), Matrices.of(weight))[:, 0]
    assert torch.equal(found, finite.view(torch.float8_e4m3fn).float())


@pytest.mark.parametrize("scale", [np.float16(np.nan), np.float16(np.inf), np.float16(-np.inf)])
@pytest.mark.parametrize("kind", ["gate", "up", "down"])
def test_a_scale_that_is_not_finite_flags_the_rows_that_meet_it(scale: np.float16, kind: str) -> None:
    made, rows = experts((Q8_0, Q8_0, Q8_0)), asked(6)
    held = layer(*(copied(matrices) for matrices in (made.gate, made.up, made.down)))
    block = getattr(held, kind).data[2].numpy()[3, 34:36]
    block[:] = np.array([scale]).view(np.uint8)
    _, saturated = moe_partial_sum(held, rows)
    meets = (rows.expert_ids == 2).any(axis=1)
    assert 0 < meets.sum() < 6
    # Minus infinity in the gate is switched off where x is positive there: silu(-inf) is not a number.
    assert np.array_equal(saturated, meets)


def test_a_row_that_is_no_whole_number_of_blocks_is_refused() -> None:
    with pytest.raises(InputError, match="q8_0: expected rows of a multiple of 32 weights, found 48"):
        ExpertMatrices.empty(Q8_0, 1, 4, 48)


def test_a_form_the_kernels_do_not_know_is_refused() -> None:
    unknown = ExpertMatrices.empty(WeightFormat("q9_k", 256, 144), EXPERTS, 256, 256)
    with pytest.raises(ValueError, match="do not compute with weights in q9_k"):
        layer(unknown, unknown, unknown)


def test_matrices_of_shapes_that_do_not_fit_are_refused() -> None:
    wide, tall = in_form(FLOAT32, 32, 64, 0), in_form(FLOAT32, 64, 32, 1)
    layer(wide, wide, tall)
    with pytest.raises(ValueError, match="do not fit"):
        layer(wide, wide, wide)
    with pytest.raises(ValueError, match="slots beyond the 5 experts"):
        ExpertWeights(torch.tensor([5], dtype=torch.int32), wide, wide, tall, limit=0.0, top_k=1)
