"""`potluck trace` writes what the generator gives, and the other commands read it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from placement.given.stats import RoutingStats
from placement.given.traces import CODING, SyntheticRouter
from placement.model_shape import STEP_3_5_FLASH
from tests.orchestrator.command_line import Potluck, document
from tests.orchestrator.test_plan_cli import CLUSTER


def test_the_file_holds_the_generator_s_trace(potluck: Potluck, tmp_path: Path) -> None:
    out = tmp_path / "t.npz"
    made = document(
        potluck("trace", "--domain", "coding", "--tokens", 300, "--seed", 3, "--out", out, "--json")
    )
    assert (made["tokens"], made["domain"], made["seed"]) == (300, "coding", 3)
    loaded = RoutingStats.load(out, STEP_3_5_FLASH)
    assert loaded.trace is not None
    expected = SyntheticRouter(STEP_3_5_FLASH).trace(CODING, 300, stream_seed=3)
    assert np.array_equal(loaded.trace, expected)
    assert loaded.source == "synthetic coding, seed 3"


def test_plan_and_simulate_take_it(potluck: Potluck, tmp_path: Path) -> None:
    cluster, plan = tmp_path / "cluster.yaml", tmp_path / "plan.json"
    cluster.write_text(CLUSTER)
    for seed in (0, 1):
        code, out, err = potluck("trace", "--tokens", 100, "--seed", seed, "--out", tmp_path / f"{seed}.npz")
        assert (code, out) == (0, "")
        assert "100 tokens of synthetic general text for step-3.5-flash" in err.replace("\n", "").lower()
    given = ("--model", "step-3.5-flash", "--quant", "q4", "--policy", "uniform")
    code, _, err = potluck("plan", cluster, *given, "--stats", tmp_path / "0.npz", "--out", plan)
    assert code == 0, err
    made = document(potluck("simulate", plan, "--cluster", cluster, "--trace", tmp_path / "1.npz", "--json"))
    assert made["tokens_per_s"] > 0


def test_mistakes_are_one_line_and_leave_no_file(potluck: Potluck, tmp_path: Path) -> None:
    out = tmp_path / "t.npz"
    for given, message in (
        (("--domain", "poetry"), "found 'poetry'"),
        (("--tokens", 4_000_000), "a trace of 4,000,000 tokens: expected 1 to 3,1"),
        (("--tokens", 0), "--tokens"),
        (("--model", "step-9"), "is not built in"),
    ):
        code, _, err = potluck("trace", *given, "--out", out)
        assert (code, err.count("\n")) == (2, 1)
        assert message in err
    assert list(tmp_path.iterdir()) == []
