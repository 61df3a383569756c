"""The examples in docs/formats.md are what the code accepts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from placement.given.cluster_file import load_cluster
from placement.model_shape import STEP_3_5_FLASH
from placement.plan_file import PLAN_VERSION, read_plan
from placement.weight_format import FLOAT16, Q8_0, ExpertFormat

DOCUMENT = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")


def example(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)
    assert found
    return found[1]


def test_the_fingerprint_example_runs() -> None:
    exec(example("python"), {})


def test_the_plan_example_loads(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(example("json"))
    plan = read_plan(path)
    plan.check_fits()
    assert json.loads(path.read_text())["version"] == PLAN_VERSION
    assert [worker.name for worker in plan.workers] == ["head", "attic"]
    assert [tier.kind for tier in plan.tiers] == ["ram", "vram", "ram"]
    assert plan.experts_of("attic") == {1: (2,), 2: (0, 1, 3)}
    assert plan.workload is not None
    sizes = [ExpertFormat.of(Q8_0), ExpertFormat(Q8_0, Q8_0, FLOAT16)]
    assert [layer.form for layer in plan.layers] == [form.name for form in sizes]
    shape = STEP_3_5_FLASH
    expected = [form.expert_bytes(shape.hidden_size, shape.moe_intermediate_size) for form in sizes]
    assert plan.expert_bytes.tolist() == expected


def test_what_is_said_of_version_1_loads(tmp_path: Path) -> None:
    listed = DOCUMENT[DOCUMENT.index("### Version 1") : DOCUMENT.index("## Cluster file")]
    old = json.loads(example("json"))
    layers, assumes, workers = old.pop("layers"), old.pop("assumes"), old.pop("workers")
    flat = [(worker, tier) for worker in workers for tier in worker["tiers"]]
    old |= {
        "version": 1,
        "dtype": "q4",
        "moe_layers": [int(layer) for layer in layers],
        "expert_bytes": 8847360,
        "workload": assumes,
        "workers": [
            {"node": worker["node"], "tier": tier["kind"]} | {k: v for k, v in tier.items() if k != "kind"}
            for worker, tier in flat
        ],
    }
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(old))
    plan = read_plan(path)
    assert [worker.name for worker in plan.workers] == [tier["name"] for _, tier in flat]
    assert plan.experts_of("attic-ram") == {2: (1, 3)}
    for field in ("moe_layers", "expert_bytes", "workload", "tier"):
        assert f"`{field}`" in listed


@pytest.mark.parametrize("written", re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL))
def test_the_cluster_examples_load(written: str, tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(written)
    assert [node.name for node in load_cluster(path).nodes] == ["study", "attic"]
