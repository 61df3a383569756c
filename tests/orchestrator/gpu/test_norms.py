"""Sums, norms, grids and roundings of the residual's path on a card."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from orchestrator import kernels
from orchestrator.gpu.norms import CardNorm, GridSums, NormedOut, norm_rows
from tests.orchestrator.gpu.on_card import OnCard, assert_same_bits
from workers import fixed_point
from workers.gpu.linear import GpuRows
from workers.kernels import round_rows

EPS = 1e-5


def some_rows(random: np.random.Generator, rows: int, columns: int) -> NDArray[np.float32]:
    """Of many sizes; now and then zero, or not finite."""
    x = random.standard_normal((rows, columns)) * 10.0 ** random.integers(-30, 15, (rows, 1))
    x[random.random(rows) < 0.1] = 0
    for bad in (np.inf, -np.inf, np.nan):
        x[random.random(rows) < 0.05, random.integers(columns)] = bad
    return x.astype(np.float32)


def rounded_there(on_card: OnCard, rows: int, columns: int, block: int) -> GpuRows:
    return GpuRows(
        q=on_card.room(rows, columns, item_bytes=1),
        scales=on_card.room(rows, columns // block),
        sums=on_card.room(rows, columns // 16, item_bytes=2),
    )


def assert_rounded(on_card: OnCard, found: GpuRows, rows: NDArray[np.float32], block: int) -> None:
    (expected,) = round_rows(np.ascontiguousarray(rows), (block,)).parts
    T, K = rows.shape
    assert_same_bits(on_card.get(found.q, (T, K), np.int8), expected.q)
    assert_same_bits(on_card.get(found.scales, (T, K // block)), expected.scales)
    sums = expected.q.reshape(T, K // 16, 16).sum(2, dtype=np.int16)
    assert_same_bits(on_card.get(found.sums, (T, K // 16), np.int16), sums)


def norm_all(on_card: OnCard, seed: int, columns: int, *, zero_centered: bool, narrow: bool) -> None:
    """Everything that a layer wants of rows, at once."""
    random = np.random.default_rng(seed)
    rows = int(random.integers(1, 6))
    x, weight = some_rows(random, rows, columns), random.standard_normal(columns).astype(np.float32)
    stride = columns + 3
    normed, exponents = on_card.room(rows, stride), on_card.room(rows)
    broken = on_card.room(rows)
    narrowed = on_card.room(rows, columns) if narrow else 0
    by_256, by_32 = (
        rounded_there(on_card, rows, columns, block) if columns % block == 0 else None for block in (256, 32)
    )
    norm_rows(
        on_card.stream,
        rows,
        columns,
        [on_card.put(x)],
        exponents=exponents,
        broken=broken,
        norm=CardNorm(on_card.put(weight), EPS, zero_centered),
        to=NormedOut(normed, stride, narrowed, by_256, by_32),
    )
    expected = kernels.rms_norm(torch.from_numpy(x), torch.from_numpy(weight), EPS, zero_centered)
    assert_same_bits(on_card.get(normed, (rows, stride))[:, :columns].copy(), expected)
    assert_same_bits(
        on_card.get(exponents, (rows,), np.int32), fixed_point.scale_exponents(torch.from_numpy(x))
    )
    finite = np.isfinite(x).all(1)
    assert_same_bits(on_card.get(broken, (rows,), np.int32), (~finite).astype(np.int32))
    sent = expected
    if narrow:
        sent = expected.bfloat16().float()
        assert_same_bits(on_card.get(narrowed, (rows, columns)), sent)
    for rounded, block in ((by_256, 256), (by_32, 32)):
        if rounded is not None:
            assert_rounded(on_card, rounded, sent.numpy(), block)


@pytest.mark.parametrize("columns", [1, 40, 256, 1024, 4096 + 272, 8192 + 32])
@pytest.mark.parametrize(("zero_centered", "narrow"), [(False, False), (True, True)])
def test_a_norm_its_grid_and_roundings_have_the_cpu_kernels_bits(
    on_card: OnCard, columns: int, zero_centered: bool, narrow: bool
) -> None:
    norm_all(on_card, columns, columns, zero_centered=zero_centered, narrow=narrow)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100))
def test_many_norms_have_the_cpu_kernels_bits(on_card: OnCard, seed: int) -> None:
    random = np.random.default_rng(seed)
    columns = int(random.integers(1, 9000)) // (blocks := int(random.choice([1, 32, 256]))) * blocks + blocks
    norm_all(on_card, seed, columns, zero_centered=bool(random.integers(2)), narrow=bool(random.integers(2)))


def test_the_residual_is_added_before_it_is_normed(on_card: OnCard) -> None:
    random = np.random.default_rng(3)
    attended, hidden = some_rows(random, 9, 300), some_rows(random, 9, 300)
    weight = random.standard_normal(300).astype(np.float32)
    residual, normed = on_card.put(hidden), on_card.room(9, 300)
    norm_rows(
        on_card.stream,
        9,
        300,
        [on_card.put(attended), residual],
        total=residual,
        norm=CardNorm(on_card.put(weight), EPS, False),
        to=NormedOut(normed),
    )
    expected = torch.from_numpy(attended) + torch.from_numpy(hidden)
    assert_same_bits(on_card.get(residual, (9, 300)), expected)
    assert_same_bits(
        on_card.get(normed, (9, 300)), kernels.rms_norm(expected, torch.from_numpy(weight), EPS, False)
    )


@pytest.mark.parametrize("places", [1, 2, 3])
@pytest.mark.parametrize("num_terms", [0, 1, 2])
def test_experts_sums_meet_in_integers_and_are_rounded_once(
    on_card: OnCard, places: int, num_terms: int
) -> None:
    random = np.random.default_rng(places)
    rows, columns = 40, 96
    sums = [
        (random.integers(-(2**30), 2**30, (rows, columns)) >> random.integers(0, 31, (rows, 1))).astype(
            np.int32
        )
        for _ in range(places)
    ]
    exponents = random.integers(fixed_point.MIN_EXPONENT, fixed_point.COARSEST_EXPONENT, rows).astype(
        np.int32
    )
    # Beyond what the head asks for: a result that is subnormal, and one that is infinite.
    exponents[:4] = (-149, -140, 127, 400)
    terms = [some_rows(random, rows, columns) for _ in range(num_terms)]
    total = on_card.room(rows, columns)
    norm_rows(
        on_card.stream,
        rows,
        columns,
        [on_card.put(term) for term in terms],
        grid=GridSums(tuple(map(on_card.put, sums)), on_card.put(exponents)),
        total=total,
    )
    expected = fixed_point.to_float32(np.sum(sums, axis=0, dtype=np.int32), exponents)
    for term in terms:
        expected = expected + torch.from_numpy(term)
    assert_same_bits(on_card.get(total, (rows, columns)), expected)


def test_two_norms_may_lie_side_by_side(on_card: OnCard) -> None:
    random = np.random.default_rng(5)
    rows, columns = 3, 70
    parts = [some_rows(random, rows, columns) for _ in range(2)]
    weights = [random.standard_normal(columns).astype(np.float32) for _ in range(2)]
    both = on_card.room(rows, 2 * columns)
    for place, (part, weight) in enumerate(zip(parts, weights, strict=True)):
        norm = CardNorm(on_card.put(weight), EPS, True)
        to = NormedOut(both + 4 * columns * place, 2 * columns)
        norm_rows(on_card.stream, rows, columns, [on_card.put(part)], norm=norm, to=to)
    expected = [
        kernels.rms_norm(torch.from_numpy(part), torch.from_numpy(weight), EPS, True)
        for part, weight in zip(parts, weights, strict=True)
    ]
    assert_same_bits(on_card.get(both, (rows, 2 * columns)), torch.cat(expected, 1))


@pytest.mark.parametrize(("terms", "sums"), [([], ()), ([1, 2, 3], ()), ([1, 2], ()), ([], (1,))])
def test_a_sum_that_cannot_be_formed_is_refused(
    on_card: OnCard, terms: Sequence[int], sums: tuple[int, ...]
) -> None:
    grid = GridSums(sums, 1) if sums else None
    with pytest.raises(ValueError, match=r"^norm_rows: "):
        norm_rows(on_card.stream, 1, 32, terms, grid=grid, norm=CardNorm(1, EPS, False))


def test_columns_that_are_no_whole_blocks_are_refused(on_card: OnCard) -> None:
    with pytest.raises(ValueError, match="288 columns are no whole blocks of 256"):
        norm_rows(on_card.stream, 1, 288, [1], to=NormedOut(by_256=GpuRows(q=1, scales=1, sums=1)))
