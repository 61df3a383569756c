"""Exports say what the other engine does otherwise than the plan, and refuse what it cannot do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from placement.errors import InputError, PlanError
from placement.holders import HolderTable
from placement.interop.export import ExportInputs, export_plan
from placement.plan import Plan, PlannedTier, like_layers
from tests.placement.shapes import small_shape

SHAPE = small_shape()
EXPERT_BYTES = 100


def uneven_plan(second_tier: str = "vram") -> Plan:
    """Seven experts of each layer on the first worker, three on the second, each with room for these only."""
    masks = np.zeros((2, SHAPE.num_moe_layers, SHAPE.num_experts), dtype=bool)
    masks[0, :, :7], masks[1, :, 7:] = True, True
    workers = [
        PlannedTier(name, "box", device, tier, held * SHAPE.num_moe_layers * EXPERT_BYTES)
        for name, device, tier, held in (("head", "cuda:0", "vram", 7), ("other", "cuda:1", second_tier, 3))
    ]
    return Plan(
        *(SHAPE.name, SHAPE.fingerprint, like_layers(SHAPE.moe_layers, "q4", EXPERT_BYTES), "bfloat16"),
        tuple(workers),
        HolderTable.from_masks(masks),
        "test",
    )


def test_equal_ranks_that_are_too_large_for_a_worker_are_told(tmp_path: Path) -> None:
    exported = export_plan("sglang", tmp_path / "map.json", ExportInputs(uneven_plan(), SHAPE))
    (note,) = exported.notes
    assert note.startswith("SGLang gives every rank 7 experts a layer")
    assert note.endswith("more than the plan has room for on other (900 B)")


def test_sglang_takes_no_experts_in_ram(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"on a GPU.*found experts on other"):
        export_plan("sglang", tmp_path / "map.json", ExportInputs(uneven_plan("ram"), SHAPE))
    assert not list(tmp_path.iterdir())


def test_an_unknown_format_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected sglang, sglang-counts, llama\.cpp, found 'vllm'"):
        export_plan("vllm", tmp_path / "o", ExportInputs(uneven_plan(), SHAPE))
    assert not list(tmp_path.iterdir())
