"""`potluck plan --export`: files as the other engines take them, and one line for what they cannot do."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from placement.given.stats import RoutingStats
from placement.plan_file import read_plan
from tests.orchestrator.command_line import Potluck, document
from tests.orchestrator.test_plan_cli import CLUSTER
from tests.tiny_checkpoint import write_random_checkpoint
from workers.model_config import Step35Config

GPUS = """
head: tower
nodes:
  - name: tower
    devices:
      - {name: gpu0, kind: vram, memory_bytes: 96GB, bandwidth_gbytes_per_s: 1000, ffn_gflops: 90000}
      - {name: gpu1, kind: vram, memory_bytes: 80GB, bandwidth_gbytes_per_s: 1000, ffn_gflops: 90000}
"""
NAMES = ["cluster.yaml", "gpus.yaml", "model", "routing.npz"]
BUFFER = ("--buffer", "attic-ram=RPC0[attic:50052]")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("export") / "model", seed=2)


@pytest.fixture
def folder(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    (tmp_path / "gpus.yaml").write_text(GPUS)
    (tmp_path / "model").symlink_to(model)
    shape = Step35Config.load(model).shape("model")
    counts = np.full((shape.num_moe_layers, shape.num_experts), shape.top_k)
    RoutingStats.from_counts(shape, counts, shape.num_experts, "even").save(tmp_path / "routing.npz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plan_of(cluster: str, *more: object) -> tuple[object, ...]:
    return ("plan", cluster, "--model", "model", "--quant", "float32", "--policy", "uniform", *more)


def test_llamacpp_gets_arguments_that_xargs_passes_on(potluck: Potluck, folder: Path) -> None:
    made = document(potluck(*plan_of("cluster.yaml", "--export", "llama.cpp=o.txt", *BUFFER, "--json")))
    (exported,) = made["exports"]
    assert (exported["format"], exported["file"]) == ("llama.cpp", "o.txt")
    passed = subprocess.run(
        ["xargs", "-a", folder / "o.txt", "printf", "%s\n"], capture_output=True, text=True, check=True
    )
    assert passed.stdout.splitlines() == exported["arguments"]
    assert "4 of 4 MoE layers that the plan divides" in exported["notes"][0]


def test_whole_layers_lose_nothing_in_llamacpp(potluck: Potluck, folder: Path) -> None:
    whole = ("--policy", "whole-layers", "--export", "llama.cpp=o.txt", *BUFFER)
    code, _, err = potluck(*plan_of("cluster.yaml", *whole))
    assert code == 0, err
    assert "wrote o.txt: xargs -a o.txt llama-server" in err


def test_sglang_gets_the_plans_workers_as_ranks(potluck: Potluck, folder: Path) -> None:
    exports = ("--export", "sglang=map.json", "--export", "sglang-counts=counts.json")
    given = plan_of("gpus.yaml", "--stats", "routing.npz", *exports, "--out", "plan.json", "--json")
    by_map, by_counts = document(potluck(*given))["exports"]
    assert by_map["arguments"][:2] == ["--ep-size", "2"]
    assert by_map["arguments"][-2:] == ["--init-expert-location", "map.json"]
    assert "SGLang gives every rank " in by_map["notes"][0]
    slots = np.array(json.loads((folder / "map.json").read_text())["physical_to_logical_map"])
    plan = read_plan(folder / "plan.json")
    head = set(slots[2, : slots.shape[1] // 2].tolist())
    assert set(np.flatnonzero(plan.holder_table.mask(0)[0]).tolist()) <= head
    assert by_counts["arguments"] == ["--init-expert-location", "counts.json"]
    assert json.loads((folder / "counts.json").read_text())["logical_count"][3] == [4] * 16


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (("--export", "vllm=o.txt"), ("--export", "expected sglang, sglang-counts, llama.cpp", "'vllm'")),
        (("--export", "llama.cpp"), ("--export", "expected FORMAT=FILE", "'llama.cpp'")),
        (("--export", "llama.cpp=o.txt"), ("device 'attic-ram'", "--buffer 'attic-ram=RPC0[attic:50052]'")),
        (("--export", "sglang=o.txt"), ("--export sglang", "on a GPU", "head, attic-ram")),
        (("--export", "sglang-counts=o.txt"), ("--export sglang-counts", "expected --stats FILE")),
        (BUFFER, ("--buffer", "expected --export llama.cpp=FILE")),
        (("--export", "llama.cpp=o.txt", "--buffer", "cellar=CPU"), ("head, attic-ram", "'cellar'")),
        (("--export", "llama.cpp=o.txt", "--buffer", "cellar"), ("--buffer", "DEVICE=NAME")),
        (("--export", "llama.cpp=cluster.yaml", *BUFFER), ("cannot write cluster.yaml", "reads it")),
        (("--export", "llama.cpp=o.txt", *BUFFER, "--out", "o.txt"), ("o.txt", "two results")),
        (("--export", "llama.cpp=none/o.txt", *BUFFER), ("none/o.txt", "missing")),
    ],
)
def test_what_cannot_be_exported_is_one_line_and_no_file(
    potluck: Potluck, folder: Path, more: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    code, out, err = potluck(*plan_of("cluster.yaml", *more))
    assert (code, out, err.count("\n")) == (2, "", 1)
    for part in parts:
        assert part in err
    assert sorted(path.name for path in folder.iterdir()) == NAMES
    assert (folder / "cluster.yaml").read_text() == CLUSTER
