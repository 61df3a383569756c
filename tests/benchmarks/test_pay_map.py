"""What kind of plan the pay map counts a placement as, copies included."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.studies.pay_map import ATTIC, HOME, family_of
from placement.holders import HolderTable

SSD = 1
LAYERS, EXPERTS = 4, 6


@pytest.mark.parametrize(
    ("in_attic", "family"),
    [
        (np.zeros((LAYERS, EXPERTS), dtype=bool), "one box"),
        (np.arange(EXPERTS) < np.full((LAYERS, 1), 3), "experts"),
        (np.arange(LAYERS)[:, None] < np.full(EXPERTS, 2), "whole layers"),
    ],
)
@pytest.mark.parametrize("ssd_copies", [False, True])
def test_a_copy_on_the_ssd_does_not_make_it_one_box(
    in_attic: np.ndarray, family: str, ssd_copies: bool
) -> None:
    masks = np.zeros((3, LAYERS, EXPERTS), dtype=bool)
    masks[HOME], masks[ATTIC], masks[SSD] = ~in_attic, in_attic, ssd_copies
    assert family_of(HolderTable.from_masks(masks)) == family


def test_copies_in_the_other_box_are_asked_for() -> None:
    masks = np.zeros((3, LAYERS, EXPERTS), dtype=bool)
    masks[[HOME, ATTIC]] = True
    assert family_of(HolderTable.from_masks(masks)) == "experts"
