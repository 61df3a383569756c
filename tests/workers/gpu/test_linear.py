"""Every form's products on a card have the bits of the CPU kernels' products."""

from __future__ import annotations

import pytest

from tests.cuda_on_cpu.card import Card
from tests.workers.gpu.linear_cases import computed, expected, random_case, same_bits
from workers.gpu.grids import Grids
from workers.gpu.modules import LINEAR_FORMS


@pytest.mark.parametrize("form", LINEAR_FORMS)
def test_products_have_the_cpu_kernels_bits(card: Card, form: str) -> None:
    device = card.device()
    grids = Grids.upload(device)
    for seed in range(12):
        case = random_case(seed, form)
        assert same_bits(computed(case, device, grids), expected(case)), f"{form}, case {seed}"
