"""Experts in every form of the kernels' table, mixed as files mix them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray

from placement.errors import InputError
from placement.weight_format import BFLOAT16, FLOAT16, FLOAT32, FORMATS, Q8_0, WeightFormat
from tests.workers.torch_oracle import torch_partial_sum
from transport.expert_rows import ExpertRows
from workers import fixed_point
from workers.kernels import ExpertMatrices, ExpertWeights, moe_partial_sum
from workers.kernels.expert_matrices import TORCH_DTYPES

SameBits = Callable[[Callable[[], tuple[Any, ...]]], None]
EXPERTS, HIDDEN, INNER, TOP_K = 5, 96, 160, 3
MIXES = [
    *((form, form, form) for form in FORMATS.values()),
    (Q8_0, FLOAT16, BFLOAT16),
    (FLOAT32, Q8_0, FLOAT16),
]


def in_form(form: WeightFormat, rows: int, columns: int, seed: int) -> ExpertMatrices:
    """Random weights, rounded to the form."""
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(EXPERTS, rows, columns, generator=generator) / columns**0.5
    if form in TORCH_DTYPES:
        return ExpertMatrices.of(data.to(TORCH_DTYPES[form]))
    blocks = quantize(data.numpy(), GGMLQuantizationType[form.name.upper()])
    return ExpertMatrices(form, rows, columns, torch.from_numpy(blocks))


def widened(matrices: ExpertMatrices) -> ExpertMatrices:
    """The numbers that the form stands for, in float32, as torch and the gguf library read them."""
    if matrices.form in TORCH_DTYPES:
        return ExpertMatrices.of(matrices.data.float())
    kind = GGMLQuantizationType[matrices.form.name.upper()]
    return ExpertMatrices.of(torch.from_numpy(dequantize(matrices.data.numpy(), kind)))


def layer(*kinds: ExpertMatrices, limit: float = 0.0) -> ExpertWeights:
    return ExpertWeights(torch.arange(EXPERTS, dtype=torch.int32), *kinds, limit=limit, top_k=TOP_K)


def experts(mix: tuple[WeightFormat, ...], inner: int = INNER) -> ExpertWeights:
    shapes = ((inner, HIDDEN), (inner, HIDDEN), (HIDDEN, inner))
    return layer(
        *(in_form(form, *shape, seed) for seed, (form, shape) in enumerate(zip(mix, shapes, strict=True)))
    )


def in_float32(held: ExpertWeights) -> ExpertWeights:
    return layer(*map(widened, (held.gate, held.up, held.down)), limit=held.limit)


def asked(num_rows: int) -> ExpertRows:
    rng = np.random.default_rng(num_rows)
    hidden = rng.standard_normal((num_rows, HIDDEN), dtype=np.float32)
    ids = np.stack([rng.permutation(EXPERTS)[:TOP_K] for _ in range(num_rows)]).astype(np.int32)
    weights = rng.random((num_rows, TOP_K), dtype=np.float32)
    return ExpertRows(hidden, ids, weights, fixed_point.scale_exponents(torch.from_numpy(hidden)))


@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: "/".join(form.name for form in mix))
@pytest.mark.parametrize("num_rows", [1, 2, 7, 60])
def test_a_form_computes_the_bits_of_its_numbers_in_float32(
    mix: tuple[WeightFormat, ...], num_rows: int
) -> None:
    held, rows = experts(mix), asked(num_rows)
    values, saturated = moe_partial_sum(held, rows)
    assert not saturated.any()
    assert np.array_equal(values, moe_partial_sum(in_float32(held), rows)[0])


@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: "/".join(form.name for form in mix))
def test_the_sum_is_close_to_plain_torch_on_the_same_numbers(mix: tuple[WeightFormat, ...]) -> None:
    held, rows = experts(mix), asked(9)
    values, _ = moe_partial_sum(held, rows)
    plain = torch_partial_sum(in_float32(held), rows)
    difference = fixed_point.to_float32(values - plain.values, rows.scale_exponents)
    assert difference.abs().max() < 3e-6


@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: "/".join(form.name for form in mix))
def test_the_bits_are_the_same_everywhere_and_in_any_batch(
    mix: tuple[WeightFormat, ...], same_bits_everywhere: SameBits
) -> None:
    held, rows = experts(mix, inner=1120), asked(52)
    same_bits_everywhere(lambda: moe_partial_sum(held, rows))
    together, _ = moe_partial_sum(held, rows)
    for part in (np.arange(1), np.arange(1, 18), np.arange(18, 52)):
        assert np.array_equal(moe_partial_sum(held, rows.at(part))[0], together[part])


@pytest.mark.parametrize("magnitudes", [(0, 0x400), (0x400, 0x7C00), (0, 0x7C00)])
def test_every_finite_float16_widens_exactly(
    magnitudes: tuple[int, int], same_bits_everywhere: SameBits
) -> None:
    """Subnormal numbers too, as weights and as scales; rows that end within sixteen lanes too."""
    rng = np.random.default_rng(1)

    def bits(*shape: int) -> NDArray[np.uint16]:
        return (rng.integers(*magnitudes, shape) | rng.integers(0, 2, shape) << 15).astype(np.uint16)

    plain = ExpertMatrices.of(torch.from_numpy(bits(EXPERTS, 64, HIDDEN - 3).view(np.float16)))
    blocks = rng.integers(0, 256, (EXPERTS, 64, 3, 34), dtype=np.uint8)
    blocks[..., :2] = bits(EXPERTS, 64, 3)[..., None].view(np.uint8)
    scaled = ExpertMatrices(Q8_0, 64, HIDDEN, torch.from_numpy(blocks.reshape(EXPERTS, 64, 3 * 34)))
    for kind in (plain, scaled):
        rows = asked(4)
        largest = float(widened(kind).data.abs().max())
        rows = rows._replace(
            hidden=np.ascontiguousarray(rows.hidden[:, : kind.columns] / np.float32(largest))
        )
        down = ExpertMatrices.of(torch.randn(EXPERTS, kind.columns, 64))
        held = layer(kind, kind, down)
        rows = rows._replace(scale_exponents=np.full(4, -17, np.int32))
        values, saturated = moe_partial_sum(held, rows)
        assert not saturated.any()
        assert values.any()
        assert np.array_equal(values, moe_partial_sum(in_float32(held), rows)[0])
        same_bits_everywhere(lambda held=held, rows=rows: moe_partial_sum(held, rows))  # type: ignore[misc]


@pytest.mark.parametrize("scale", [np.float16(np.nan), np.float16(np.inf), np.float16(-np.inf)])
@pytest.mark.parametrize("kind", ["gate", "up", "down"])
def test_a_scale_that_is_not_finite_flags_the_rows_that_meet_it(scale: np.float16, kind: str) -> None:
    held, rows = experts((Q8_0, Q8_0, Q8_0)), asked(6)
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
    q4 = ExpertMatrices.empty(WeightFormat("q4_k", 256, 144), EXPERTS, 256, 256)
    with pytest.raises(ValueError, match="do not compute with weights in q4_k"):
        layer(q4, q4, q4)


def test_matrices_of_shapes_that_do_not_fit_are_refused() -> None:
    wide, tall = in_form(FLOAT32, 32, 64, 0), in_form(FLOAT32, 64, 32, 1)
    layer(wide, wide, tall)
    with pytest.raises(ValueError, match="do not fit"):
        layer(wide, wide, wide)
    with pytest.raises(ValueError, match="slots beyond the 5 experts"):
        ExpertWeights(torch.tensor([5], dtype=torch.int32), wide, wide, tall, limit=0.0, top_k=1)
