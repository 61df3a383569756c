"""Dot products with quantised weights against the gguf library's numbers, and their documented arithmetic."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from orchestrator.kernels import linear
from placement.weight_format import FORMATS, Q4_K, Q8_0, WeightFormat
from tests.workers.quantised import any_blocks, dequantised, fma32, rounded, sized_blocks
from transport.expert_rows import ExpertRows
from workers.kernels import ExpertMatrices, ExpertWeights, Matrices, Matrix, moe_partial_sum, round_rows
from workers.probe.random_blocks import scale_places

SameBits = Callable[[Callable[[], tuple[Any, ...]]], None]
QUANTISED = [form for form in FORMATS.values() if form.rounding_block]


def activations(num_rows: int, columns: int, seed: int = 0) -> NDArray[np.float32]:
    """Rows of many magnitudes, with a block of zeros."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((num_rows, columns)) * 2.0 ** rng.integers(-8, 8, (num_rows, columns))
    x[0, :256] = 0
    return x.astype(np.float32)


def matrix_of(form: WeightFormat, rows: int, columns: int, seed: int = 0) -> Matrix:
    return Matrix(form, rows, columns, torch.from_numpy(any_blocks(form, rows, columns, seed)))


@pytest.mark.parametrize("form", QUANTISED, ids=lambda form: form.name)
@pytest.mark.parametrize("num_rows", [1, 3, 21])
def test_a_form_stands_for_the_numbers_of_the_gguf_library(form: WeightFormat, num_rows: int) -> None:
    x, weight = activations(num_rows, 1280), matrix_of(form, 37, 1280)
    q, scales = rounded(x, form.rounding_block)
    heard = (q.astype(np.float64).reshape(num_rows, -1, form.rounding_block) * scales[..., None]).reshape(
        x.shape
    )
    numbers = dequantised(form, weight.data.numpy()).astype(np.float64)
    exact, size = heard @ numbers.T, np.abs(heard) @ np.abs(numbers).T
    found = linear(torch.from_numpy(x), Matrices.of(weight)).numpy()
    assert (np.abs(found - exact) <= 2e-6 * size).all()


@pytest.mark.parametrize("form", QUANTISED, ids=lambda form: form.name)
def test_the_bits_are_the_same_everywhere_and_in_any_batch(
    form: WeightFormat, same_bits_everywhere: SameBits
) -> None:
    x = torch.from_numpy(activations(40, 2304, seed=1))
    weight = Matrices.of(matrix_of(form, 131, 2304, seed=1))
    same_bits_everywhere(lambda: (linear(x, weight),))
    together = linear(x, weight)
    for rows in (slice(0, 1), slice(1, 3), slice(3, 7), slice(7, 20), slice(20, 40)):
        assert torch.equal(linear(x[rows].contiguous(), weight), together[rows])


def with_scales(form: WeightFormat, blocks: NDArray[np.uint8], *values: float) -> NDArray[np.uint8]:
    """A copy of blocks [..., block_bytes] whose scale, and minimum where they have one, are these."""
    copy = blocks.copy()
    for place, value in zip(scale_places(form.name), values, strict=False):
        copy[..., place : place + 2] = np.array([value], np.float16).view(np.uint8)
    if form.name == "mxfp4":
        copy[..., 0] = MXFP4_ONE
    return copy


MXFP4_ONE = 128
"""The exponent of a block whose d is 1."""


def documented_bounds() -> dict[str, int]:
    """docs/arithmetic.md: form -> the largest |S| of a block."""
    text = (Path(__file__).parents[3] / "docs/arithmetic.md").read_text(encoding="utf-8")
    bounds = {}
    for names, bound in re.findall(r"\| (\w+(?:, \w+)*|IQ2 types) \| \d[\d ·]*= ([\d,]+) (?=\|)", text):
        many = [name for name in FORMATS if name.startswith("iq2")] if "IQ2" in names else names.split(", ")
        bounds |= dict.fromkeys((name.lower() for name in many), int(bound.replace(",", "")))
    return bounds


def largest_block(form: WeightFormat, *scales: float) -> NDArray[np.uint8]:
    """uint8 [1, block_bytes]: bytes all alike but the scales, of the largest integers that there are so."""
    blocks = np.repeat(np.arange(256, dtype=np.uint8)[:, None], form.block_bytes, axis=1)
    if form.name == "q6_k":
        blocks[0, 192:208] = 0x80  # scales of -128 meet weights of -32 in no block of equal bytes
    blocks = with_scales(form, blocks, *scales)
    return blocks[[np.abs(dequantised(form, blocks)).sum(axis=1).argmax()]]


@pytest.mark.parametrize("form", QUANTISED, ids=lambda form: form.name)
def test_the_largest_sums_are_exact_and_within_the_documented_bound(
    form: WeightFormat, same_bits_everywhere: SameBits
) -> None:
    """Scales are 1, so a block's result is S, or M: the integers themselves, rounded once to float32."""
    unit = 4 if form.name == "iq3_xxs" else 8 if form.name.startswith("iq2") else 1
    bound = documented_bounds()[form.name]
    kinds = [((1.0, 0.0), bound)]
    if len(scale_places(form.name)) == 2:
        kinds.append(((0.0, 1.0), 256 * 63 * 127))
    for scales, most in kinds:
        block = largest_block(form, *scales)
        numbers = dequantised(form, block)[0].astype(np.float64)
        weight = Matrices.of(Matrix(form, 1, form.block_weights, torch.from_numpy(block)))
        # Both ends of the range, and every sign of the products.
        x = 127 * np.stack([np.where(numbers < 0, -1, 1), np.where(numbers < 0, 1, -1)]).astype(np.float32)
        x = np.concatenate([x, x * np.where(np.arange(x.shape[1]) % 2, 1, -1).astype(np.float32)])
        largest = 127 * np.abs(numbers).sum() * unit
        assert largest <= most
        found = linear(torch.from_numpy(x), weight).numpy()[:, 0]
        assert np.array_equal(found, (x.astype(np.float64) @ numbers).astype(np.float32))
        assert abs(found[0]) == np.float32(largest / unit)
        same_bits_everywhere(lambda x=x, w=weight: (linear(torch.from_numpy(x), w),))
        if scales[0] and not form.name.startswith(("iq2", "iq3")):
            # The types that share a row of the table have half of it at least.
            assert largest > most / 2


@pytest.mark.parametrize("form", QUANTISED, ids=lambda form: form.name)
@pytest.mark.parametrize("num_blocks", [1, 8, 19])
def test_blocks_are_added_in_eight_lanes_and_a_tree(form: WeightFormat, num_blocks: int) -> None:
    """The documented order, one operation at a time; integers by what the gguf library reads them as."""
    columns = num_blocks * form.block_weights
    x, weight = activations(2, columns, seed=3), matrix_of(form, 3, columns, seed=3)
    q, scales = rounded(x, form.rounding_block)
    by_block = q.reshape(2, num_blocks, -1).astype(np.float64)
    shares = [
        (factors, np.einsum("nbi,tbi->tnb", numbers, by_block))
        for factors, numbers in factors_and_integers(form, weight.data.numpy().reshape(3, num_blocks, -1))
    ]
    expected = np.empty((2, 3), np.float32)
    for t in range(2):
        for n in range(3):
            lanes = np.zeros(8, np.float32)
            for b in range(num_blocks):
                for factors, sums in shares:
                    product = factors[n, b] * scales[t, b]
                    lanes[b % 8] = fma32(product, np.float32(sums[t, n, b]), lanes[b % 8])
            for width in (4, 2, 1):
                lanes = lanes[:width] + lanes[width : 2 * width]
            expected[t, n] = lanes[0]
    assert np.array_equal(linear(torch.from_numpy(x), Matrices.of(weight)).numpy(), expected)


def factors_and_integers(
    form: WeightFormat, blocks: NDArray[np.uint8]
) -> list[tuple[NDArray[np.float32], NDArray[np.float64]]]:
    """Of blocks [n, b, block_bytes]: each one's d [n, b] and its s * w [n, b, weights], then m and t.

    The grid types' d is a fourth or an eighth of the file's; here their integers are, which gives the same
    bits. So does a minimum whose sign is in its integers.
    """
    if form.name == "mxfp4":
        exponents = blocks[..., 0].astype(np.float32) - MXFP4_ONE
        return [(np.exp2(exponents), _numbers(form, with_scales(form, blocks)))]
    places = scale_places(form.name)
    found = []
    for place in places:
        factors = blocks[..., place : place + 2].copy().view(np.float16)[..., 0].astype(np.float32)
        alone = with_scales(form, blocks, *(float(other == place) for other in places))
        found.append((factors, _numbers(form, alone)))
    return found


def _numbers(form: WeightFormat, blocks: NDArray[np.uint8]) -> NDArray[np.float64]:
    flat = dequantised(form, blocks.reshape(-1, form.block_bytes))
    return flat.reshape(*blocks.shape[:2], -1).astype(np.float64)


@pytest.mark.parametrize("form", QUANTISED, ids=lambda form: form.name)
def test_several_matrices_side_by_side_are_each_by_itself(form: WeightFormat) -> None:
    x = torch.from_numpy(activations(3, 512, seed=4))
    mine, plain = matrix_of(form, 50, 512), torch.randn(7, 512)
    together = linear(x, Matrices.of(mine, plain, matrix_of(Q8_0, 3, 512)))
    assert together.shape == (3, 60)
    assert torch.equal(together[:, :50], linear(x, Matrices.of(mine)))
    assert torch.equal(together[:, 50:57], linear(x, plain))
    assert torch.equal(together[:, 57:], linear(x, Matrices.of(matrix_of(Q8_0, 3, 512))))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_activation_that_is_not_finite_makes_the_row_not_a_number(value: float) -> None:
    x = activations(3, 512, seed=5)
    x[1, 300] = value
    found = linear(torch.from_numpy(x), Matrices.of(matrix_of(Q4_K, 9, 512)))
    assert torch.isnan(found[1]).all()
    assert torch.isfinite(found[[0, 2]]).all()


@pytest.mark.parametrize("block", [32, 256])
def test_activations_round_as_documented(block: int, same_bits_everywhere: SameBits) -> None:
    x = np.concatenate([np.zeros((6, 256), np.float32), activations(5, 256, seed=6)])
    x[0, :3] = [1e-44, -3e-45, 1e-45]  # a scale below the smallest normal number counts as 0
    x[1, :2] = [127 * 2.0**-126, -(2.0**-120)]
    x[2, :2] = [3.4e38, -1.7e38]
    x[3, :4] = [127, 0.5, 1.5, -2.5]  # ties to even
    x[4, :2] = [np.nan, 1]
    x[5, :2] = [-np.inf, 1]
    found = round_rows(x, (block,)).parts[0]
    q, scales = rounded(x, block)
    assert np.array_equal(found.q, q)
    assert np.array_equal(found.scales, scales, equal_nan=True)
    assert not q[0].any()
    assert scales[0, 0] == 0
    assert scales[1, 0] == np.float32(2.0**-126)
    assert q[3, :4].tolist() == [127, 0, 2, -2]
    assert np.isnan(scales[4:6, 0]).all()
    assert not q[4:6].any()
    same_bits_everywhere(lambda: (round_rows(x, (block,)).parts[0].q,))
    weight = Matrices.of(matrix_of(Q8_0 if block == 32 else Q4_K, 5, 256, seed=6))
    same_bits_everywhere(lambda: (linear(torch.from_numpy(x[:4]), weight),))


@pytest.mark.parametrize(("gate", "up"), [("q4_k", "q4_k"), ("q8_0", "q4_0"), ("q4_k", "q8_0")])
def test_rounded_rows_give_the_sums_of_the_rows_they_were_made_of(gate: str, up: str) -> None:
    """What a worker gets over the wire, and what the head's own experts compute with."""
    forms = FORMATS[gate], FORMATS[up], FORMATS["q5_k"]
    shapes = ((256, 512), (256, 512), (512, 256))
    matrices = (
        ExpertMatrices(
            form, *shape, [torch.from_numpy(sized_blocks(form, *shape, i, 0.05)) for i in range(4)]
        )
        for form, shape in zip(forms, shapes, strict=True)
    )
    experts = ExpertWeights(torch.arange(4, dtype=torch.int32), *matrices, limit=0.0, top_k=2)
    ids = np.array([[0, 3], [2, -1], [1, 0]], np.int32)
    rows = ExpertRows(
        activations(3, 512, seed=7) / 64, ids, np.ones((3, 2), np.float32), np.full(3, -16, np.int32)
    )
    blocks = tuple(sorted({form.rounding_block for form in forms[:2]}))
    sent = rows._replace(hidden=round_rows(rows.hidden, blocks))
    values, saturated = moe_partial_sum(experts, sent)
    assert not saturated.any()
    assert np.array_equal(values, moe_partial_sum(experts, rows)[0])
    other = (32,) if blocks != (32,) else (256,)
    with pytest.raises(ValueError, match="rounded otherwise"):
        moe_partial_sum(experts, rows._replace(hidden=round_rows(rows.hidden, other)))
