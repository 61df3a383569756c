"""The examples in docs/interop.md run."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from placement.given.stats import RoutingStats
from placement.holders import HolderTable
from placement.interop.read import READERS
from placement.model_shape import STEP_3_5_FLASH
from placement.plan import Plan, PlannedTier, like_layers
from placement.plan_file import write_plan

DOCUMENT = (Path(__file__).parents[3] / "docs" / "interop.md").read_text(encoding="utf-8")


def test_the_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = STEP_3_5_FLASH
    counts = np.full((shape.num_moe_layers, shape.num_experts), 8)
    np.savez(tmp_path / "table.npz", counts=counts[None])
    (tmp_path / "table.npz").rename(tmp_path / "routing-of-another-engine")
    holders = np.zeros(counts.shape, dtype=np.int16)
    holders[20:] = 1
    plan = Plan(
        shape.name,
        shape.fingerprint,
        like_layers(shape.moe_layers, "q4", shape.expert_bytes(4.5)),
        "bfloat16",
        (
            PlannedTier("head", "study", "cuda:0", "vram", 10**12),
            PlannedTier("attic-ram", "attic", "cpu", "ram", 10**12),
        ),
        HolderTable.from_single(holders),
        "whole-layers",
    )
    write_plan(plan, tmp_path / "plan.json")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for example in re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL):
        exec(example, names)
    RoutingStats.load(tmp_path / "routing.npz", shape)
    printed = capsys.readouterr().out
    command, rest = printed.splitlines()
    assert rest == "layers that the plan divides: ()"
    shown = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=True
    )
    program, *arguments = shown.stdout.splitlines()
    assert (program, arguments[:2]) == ("llama-server", ["--rpc", "attic:50052"])
    assert arguments[2] == "-ot"
    assert re.search(r"^blk\\\.\(3\|4\|.*_exps\\\.=CUDA0,blk.*=RPC0\[attic:50052\]$", arguments[3])


def test_every_kind_is_described() -> None:
    for kind in READERS:
        assert f"| `{kind}` |" in DOCUMENT
