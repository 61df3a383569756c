"""Numbers that the kernels and what launches them both have are the same in both."""

from __future__ import annotations

import re

import pytest

from orchestrator.gpu import attention, kv_rows, routing
from placement.kv_size import PAGE_POSITIONS
from workers.gpu import expert_kernels, linear, tiles
from workers.gpu.modules import SOURCES

SHARED = {
    "linear.h": {"LINEAR_WARPS": linear.WARPS},
    "tiles.h": {
        "TILE_ROWS": tiles.TILE_ROWS,
        "TILE_ENTRIES": tiles.TILE_ENTRIES,
        "TILE_THREADS": tiles.TILE_THREADS,
    },
    "grouping.h": {
        "MOST_EXPERTS": expert_kernels.MOST_EXPERTS,
        "SLOTS_AT_ONCE": expert_kernels._SLOTS_AT_ONCE,
    },
    "routing.h": {"MOST_EXPERTS": routing.MOST_EXPERTS, "MOST_CHOSEN": routing.MOST_CHOSEN},
    "kv_page.h": {"PAGE": PAGE_POSITIONS, "SPAN_PAGES": attention._SPAN_PAGES},
    "attention_rows.h": {"MOST_PAGE_PARTS": attention._MOST_PAGE_PARTS},
    "attention.h": {"ATTENTION_WARPS": attention._WARPS},
    "attention_join.h": {"MOST_WIDTH": kv_rows.MOST_HEAD_DIM},
}


def constants(header: str) -> dict[str, int]:
    """Those of a header that are plain numbers."""
    lines = re.findall(r"constexpr int (.*?);", (SOURCES / header).read_text())
    return {name: int(number) for line in lines for name, number in re.findall(r"(\w+) = (\d+)\b", line)}


@pytest.mark.parametrize("header", SHARED)
def test_constants_of_kernels_are_those_of_python(header: str) -> None:
    there = constants(header)
    assert {name: there.get(name) for name in SHARED[header]} == SHARED[header]
