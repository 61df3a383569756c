"""Products of many rows have the CPU kernels' bits, whatever the shapes, sizes of groups and numbers are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.gpu_resources import resources
from placement.weight_format import FORMATS
from tests.cuda_on_cpu.build import HERE as CUDA_ON_CPU
from tests.cuda_on_cpu.card import Card
from tests.programs import COMPILER, complaints
from tests.workers.gpu.forms import each
from tests.workers.gpu.linear_cases import (
    HALVES,
    Case,
    computed,
    expected,
    random_matrix,
    random_rows,
    same_bits,
)
from tests.workers.quantised import dequantised
from workers.gpu.grids import Grids
from workers.gpu.modules import SOURCES, TILE_FORMS, module_of
from workers.gpu.tiles import TILE_ENTRIES, TILE_ROWS, tiles
from workers.kernels import Matrix

MOST_ENTRIES = 70


def tile_case(form_name: str, sizes: list[int], rows_out: int, num_blocks: int, seed: int) -> Case:
    """Groups of so many entries, which share rows and two matrices, one of them with odd scales."""
    rng = np.random.default_rng(seed)
    form = FORMATS[form_name]
    columns = num_blocks * form.rounding_block
    num_rows = max(3, max(sizes) // 2)
    matrices = tuple(random_matrix(form, rows_out, columns, rng, odd=odd) for odd in (False, True))
    return Case(
        form,
        random_rows(num_rows, columns, rng),
        matrices,
        tuple(rng.integers(num_rows, size=size, dtype=np.int32) for size in sizes),
        tuple(int(rng.integers(2)) for _ in sizes),
    )


def any_case(form_name: str, seed: int) -> Case:
    """One to three groups of 1 to 70 entries, rows of weights for up to three tiles."""
    rng = np.random.default_rng([seed, 1])
    sizes = [int(rng.integers(1, MOST_ENTRIES + 1)) for _ in range(int(rng.integers(1, 4)))]
    blocks_at_most = 20 if FORMATS[form_name].rounding_block == 256 else 75
    rows_out, num_blocks = int(rng.integers(1, 3 * TILE_ROWS)), int(rng.integers(1, blocks_at_most))
    return tile_case(form_name, sizes, rows_out, num_blocks, seed)


# Blocks of 256 in each lane once, and in some twice; with blocks of 32 a last step that is not full.
@pytest.mark.parametrize("form", each(TILE_FORMS))
def test_products_have_the_cpu_kernels_bits(card: Card, form: str) -> None:
    device = card.device()
    grids = Grids.upload(device)
    for seed, (sizes, rows_out, num_blocks) in enumerate(
        [([1, 16, 17, 2], 5, 3), ([33], TILE_ROWS + 1, 10), ([4], 1, 1)]
    ):
        case = tile_case(form, sizes, rows_out, num_blocks, seed)
        found = computed(case, device, grids, multiply=tiles)
        assert same_bits(found, expected(case)), f"{form}, case {seed}"


@pytest.mark.long
@pytest.mark.parametrize("form", TILE_FORMS)
def test_so_they_have_in_many_cases(card: Card, form: str) -> None:
    device = card.device()
    grids = Grids.upload(device)
    for seed in range(60):
        case = any_case(form, seed)
        found = computed(case, device, grids, multiply=tiles)
        assert same_bits(found, expected(case)), f"{form}, case {seed}"


@pytest.mark.parametrize("form", ["q8_0", "q4_k"])
@pytest.mark.parametrize("most", [1, TILE_ENTRIES + 1, 10 * TILE_ENTRIES])
def test_a_group_may_have_more_or_fewer_rows_than_the_launch_was_told(
    card: Card, form: str, most: int
) -> None:
    device = card.device()
    case = tile_case(form, [MOST_ENTRIES, 0, 3], 9, 5, seed=0)
    found = computed(case, device, Grids.upload(device), multiply=tiles, most=most)
    assert same_bits(found, expected(case))


@pytest.mark.parametrize("form", ["q8_0", "q4_k"])
def test_a_linear_layer_is_a_single_group_of_all_its_rows(card: Card, form: str) -> None:
    rng = np.random.default_rng(0)
    matrix = random_matrix(FORMATS[form], 9, 1280, rng)
    every_row = np.arange(TILE_ENTRIES + 5, dtype=np.int32)
    case = Case(FORMATS[form], random_rows(len(every_row), 1280, rng), (matrix,), (every_row,), (0,))
    device = card.device()
    found = computed(case, device, Grids.upload(device), grouped=False, multiply=tiles)
    assert same_bits(found, expected(case))


@pytest.mark.parametrize("form", each(TILE_FORMS))
def test_the_largest_integers_are_exact(card: Card, form: str) -> None:
    """Blocks of equal bytes have the largest that there are, and every row of q is 127 or -127."""
    blocks = np.repeat(np.arange(256, dtype=np.uint8)[:, None], FORMATS[form].block_bytes, axis=1)
    if form == "q6_k":
        blocks[0, 192:208] = 0x80  # scales of -128 meet weights of -32 in no block of equal bytes
    for place in HALVES.get(form, ()):
        blocks[:, place : place + 2] = np.array([1], np.float16).view(np.uint8)
    if form == "mxfp4":
        blocks[:, 0] = 128
    numbers = dequantised(FORMATS[form], blocks)
    sums, sizes = numbers.sum(axis=1), np.abs(numbers).sum(axis=1)
    largest = np.unique([sums.argmax(), sums.argmin(), sizes.argmax()])
    signs = np.where(numbers[largest] < 0, -1, 1)
    x = 127 * np.concatenate([np.ones_like(signs), -np.ones_like(signs), signs, -signs]).astype(np.float32)
    matrix = Matrix(FORMATS[form], 256, x.shape[1], torch.from_numpy(blocks))
    case = Case(FORMATS[form], x, (matrix,), (np.arange(len(x), dtype=np.int32),), (0,))
    device = card.device()
    assert same_bits(computed(case, device, Grids.upload(device), multiply=tiles), expected(case))


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
def test_instructions_of_eight_rows_and_of_sixteen_give_the_same_integers() -> None:
    sources = (Path(__file__).with_name("tensor_cores.cpp"), CUDA_ON_CPU / "blocks.cpp")
    assert complaints(sources, [CUDA_ON_CPU, SOURCES], "-O1", "-w") == ""


@pytest.mark.long
@pytest.mark.parametrize("form", TILE_FORMS)
def test_no_register_is_spilled_on_servers_of_the_ampere_generation(form: str) -> None:
    (found,) = resources(module_of(f"tiles_{form}"), (8, 0))
    assert found.spilled_bytes == 0
