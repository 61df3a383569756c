"""Every form's products on a card have the bits of the CPU kernels' products."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.gpu_bits import compare
from placement.weight_format import FORMATS
from tests.cuda_on_cpu.card import Card
from tests.workers.gpu.forms import each
from tests.workers.gpu.linear_cases import (
    Case,
    computed,
    expected,
    random_case,
    random_matrix,
    random_rows,
    same_bits,
)
from workers.gpu.grids import Grids
from workers.gpu.modules import LINEAR_FORMS


def test_there_are_kernels_for_every_form() -> None:
    assert set(LINEAR_FORMS) == set(FORMATS)


@pytest.mark.parametrize("form", each(LINEAR_FORMS))
def test_products_have_the_cpu_kernels_bits(card: Card, form: str) -> None:
    device = card.device()
    grids = Grids.upload(device)
    for seed in range(10):
        case = random_case(seed, form)
        assert same_bits(computed(case, device, grids), expected(case)), f"{form}, case {seed}"


@pytest.mark.long
def test_ten_thousand_random_products_have_the_cpu_kernels_bits(card: Card) -> None:
    counted, different = compare(card.device(), range(10_000))
    assert different == []
    assert set(counted) == set(FORMATS)


@pytest.mark.parametrize("num_rows", [1, 2, 3, 5, 8, 9, 17])
@pytest.mark.parametrize("form", ["bfloat16", "q8_0", "q4_k"])
def test_a_linear_layer_is_a_single_group_of_all_its_rows(card: Card, form: str, num_rows: int) -> None:
    rng = np.random.default_rng(num_rows)
    device = card.device()
    matrix = random_matrix(FORMATS[form], 9, 2304, rng)
    every_row = np.arange(num_rows, dtype=np.int32)
    case = Case(FORMATS[form], random_rows(num_rows, 2304, rng), (matrix,), (every_row,), (0,))
    assert same_bits(computed(case, device, Grids.upload(device), grouped=False), expected(case))


@pytest.mark.parametrize("num_rows", [1, 3])
@pytest.mark.parametrize("form", ["float32", "q8_0", "iq4_xs"])
def test_thread_blocks_of_a_large_matrix_take_several_shares(card: Card, form: str, num_rows: int) -> None:
    rng = np.random.default_rng(0)
    device = card.device()
    columns = FORMATS[form].block_weights
    rows_out = 4 * 2 * 2 * 32 * device.facts.multiprocessors * 2 + 5
    matrix = random_matrix(FORMATS[form], rows_out, columns, rng)
    case = Case(
        FORMATS[form],
        random_rows(num_rows, columns, rng),
        (matrix,),
        (np.arange(num_rows, dtype=np.int32),),
        (0,),
    )
    assert same_bits(computed(case, device, Grids.upload(device)), expected(case))


def test_activations_changed_by_one_bit_are_seen(card: Card) -> None:
    device = card.device()
    grids = Grids.upload(device)
    case = random_case(1, "q4_k")
    other = replace(case, x=np.nextafter(case.x, np.float32(np.inf)))
    assert not same_bits(computed(other, device, grids), expected(case))
