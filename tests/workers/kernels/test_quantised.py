"""Dot products with quantised weights against the gguf library's numbers, and their documented arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from orchestrator.kernels import linear
from placement.weight_format import FORMATS, Q4_K, Q8_0, WeightFormat
from tests.workers.quantised import dequantised, fma32, random_blocks, rounded, sized_blocks
from transport.expert_rows import ExpertRows
from workers.kernels import ExpertMatrices, ExpertWeights, Matrices, Matrix, moe_partial_sum, round_rows

SameBits = Callable[[Callable[[], tuple[Any, ...]]], None]
QUANTISED = [form for form in FORMATS.values() if form.rounding_block]


def activations(num_rows: int, columns: int, seed: int = 0) -> NDArray[np.float32]:
    """Rows of many magnitudes, with a block of zeros."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((num_rows, columns)) * 2.0 ** rng.integers(-8, 8, (num_rows, columns))
    x[0, :256] = 0
    return x.astype(np.float32)


def matrix_of(form: WeightFormat, rows: int, columns: int, seed: int = 0) -> Matrix:
    return Matrix(form, rows, columns, torch.from_numpy(random_blocks(form, rows, columns, seed)))


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


@pytest.mark.parametrize("form", QUANTISED, ids=lambda form: form.name)
def test_the_largest_blocks_stay_below_the_integers_end(
    form: WeightFormat, same_bits_everywhere: SameBits
) -> None:
    """All bits alike, and all activations at the end of their range: sums would wrap if they could."""
    for byte in (0x00, 0x7F, 0x80, 0xFF):
        blocks = random_blocks(form, 4, 512, seed=byte, fill=byte)
        weight = Matrix(form, 4, 512, torch.from_numpy(blocks))
        for sign in (1.0, -1.0):
            x = np.full((2, 512), sign, np.float32)
            x[1, ::2] *= -1
            numbers = dequantised(form, blocks).astype(np.float64)
            found = linear(torch.from_numpy(x), Matrices.of(weight)).numpy()
            size = np.abs(x).astype(np.float64) @ np.abs(numbers).T
            assert (np.abs(found - x.astype(np.float64) @ numbers.T) <= 2e-6 * size).all()
            same_bits_everywhere(lambda x=x, w=weight: (linear(torch.from_numpy(x), Matrices.of(w)),))


@pytest.mark.parametrize("num_blocks", [1, 5, 8, 16, 19])
def test_blocks_are_added_in_eight_lanes_and_a_tree(num_blocks: int) -> None:
    """The documented order, one operation at a time, of a form with minimums and one without."""
    for form in (Q4_K, Q8_0):
        columns = num_blocks * form.block_weights
        x, weight = activations(2, columns, seed=3), matrix_of(form, 3, columns, seed=3)
        q, scales = rounded(x, form.rounding_block)
        blocks = weight.data.numpy().reshape(3, num_blocks, form.block_bytes)
        expected = np.empty((2, 3), np.float32)
        for t in range(2):
            for n in range(3):
                lanes = np.zeros(8, np.float32)
                for b in range(num_blocks):
                    mine = q[t].reshape(num_blocks, -1)[b].astype(np.int64)
                    for factor, total in _shares(form, blocks[n, b], mine):
                        product = np.float32(factor) * scales[t, b]
                        lanes[b % 8] = fma32(product, np.float32(total), lanes[b % 8])
                for width in (4, 2, 1):
                    lanes = lanes[:width] + lanes[width : 2 * width]
                expected[t, n] = lanes[0]
        assert np.array_equal(linear(torch.from_numpy(x), Matrices.of(weight)).numpy(), expected)


def _shares(form: WeightFormat, block: NDArray[np.uint8], q: NDArray[np.int64]) -> list[tuple[float, int]]:
    """A block's scale and S, and its minimum and M."""
    if form == Q8_0:
        return [(float(block[:2].view(np.float16)[0]), int(block[2:].view(np.int8).astype(np.int64) @ q))]
    scale, minimum = block[:4].view(np.float16).astype(np.float32)
    low, middle, high = block[4:16].astype(np.int64).reshape(3, 4)
    scales = np.concatenate([low & 63, (high & 15) | (low >> 6) << 4])
    minimums = np.concatenate([middle & 63, high >> 4 | (middle >> 6) << 4])
    nibbles = block[16:].astype(np.int64).reshape(4, 32)
    weights = np.stack([nibbles & 15, nibbles >> 4], axis=1).reshape(8, 32)
    activations = q.reshape(8, 32)
    products = int(((weights * activations).sum(axis=1) * scales).sum())
    return [(float(scale), products), (-float(minimum), int((activations.sum(axis=1) * minimums).sum()))]


@pytest.mark.parametrize("form", QUANTISED, ids=lambda form: form.name)
def test_several_matrices_side_by_side_are_each_by_itself(form: WeightFormat) -> None:
    x = torch.from_numpy(activations(3, 512, seed=4))
    mine, plain = matrix_of(form, 50, 512), torch.randn(7, 512)
    together = linear(x, Matrices.of(mine, plain, matrix_of(Q8_0, 3, 512)))
    assert together.shape == (3, 60)
    assert torch.equal(together[:, :50], linear(x, Matrices.of(mine)))
    assert torch.equal(together[:, 50:57], linear(x, plain))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_activation_that_is_not_finite_makes_the_row_not_a_number(value: float) -> None:
    x = activations(3, 512, seed=5)
    x[1, 300] = value
    found = linear(torch.from_numpy(x), Matrices.of(matrix_of(Q4_K, 9, 512)))
    assert torch.isnan(found[1]).all()
    assert torch.isfinite(found[[0, 2]]).all()


def test_tiny_and_huge_activations_round_as_documented(same_bits_everywhere: SameBits) -> None:
    x = np.zeros((4, 256), np.float32)
    x[0, :3] = [1e-44, -3e-45, 1e-45]  # a scale below the smallest normal number counts as 0
    x[1, :2] = [127 * 2.0**-126, -(2.0**-120)]
    x[2, :2] = [3.4e38, -1.7e38]
    weight = matrix_of(Q8_0, 5, 256, seed=6)
    found = linear(torch.from_numpy(x), Matrices.of(weight)).numpy()
    assert not found[0].any()
    q, scales = rounded(x, 32)
    assert np.array_equal(scales[1, :1], np.float32([2.0**-126]))
    assert (q[2, :2] == [127, -64]).all() or (q[2, :2] == [127, -63]).all()
    same_bits_everywhere(lambda: (linear(torch.from_numpy(x), Matrices.of(weight)),))


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
