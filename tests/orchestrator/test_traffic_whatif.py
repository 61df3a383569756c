"""What more hardware would do to a server's own traffic."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from orchestrator.cli import traffic_whatif
from orchestrator.cli.traffic_whatif import rank_on_traffic
from orchestrator.serving.heat import Heat
from placement.errors import PotluckError
from placement.given.cluster_file import load_known_cluster
from placement.given.cluster_spec import ClusterSpec
from placement.given.probe import HERE, probe_path_here, write_probe
from tests.placement.given.probes import node, probe
from workers.formats.open_model import open_model

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models" / "potluck-tiny"


def test_changes_are_ranked_on_what_tokens_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = open_model(MODEL).shape
    luck = np.random.default_rng(1)
    heat = Heat(shape.moe_layers, shape.num_experts)
    for _ in range(6):
        for layer in shape.moe_layers:
            chosen = np.stack([luck.permutation(40)[: shape.top_k] for _ in range(100)])
            heat.record(layer, chosen.astype(np.int32))
    assert heat.recent().shape == (500, shape.num_moe_layers, shape.top_k)
    assert sum(heat.shares()[0][:40]) == pytest.approx(1, abs=1e-3)
    monkeypatch.setattr(traffic_whatif, "_LEAST_TOKENS", 500)
    box = tmp_path / "box.yaml"
    box.write_text("head: a\nnodes: [{name: a, hardware: [{use: ddr5-6000-dual, memory_bytes: 64GB}]}]\n")
    found = rank_on_traffic(box, MODEL, shape, heat.recent())
    assert found["tokens"] == 500
    assert found["changes"]
    assert {"what", "tokens_per_s", "gain"} <= set(found["changes"][0])


def test_a_machine_alone_is_taken_as_its_probe_measured_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_probe(probe(HERE, {HERE: node()}).model_copy(update={"links": {}}), probe_path_here())
    asked: list[ClusterSpec] = []

    def planner(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(load_known_cluster(command[command.index("whatif") + 1]))
        return subprocess.CompletedProcess(command, 0, '{"changes": []}', "")

    monkeypatch.setattr(subprocess, "run", planner)
    shape = open_model(MODEL).shape
    none = np.zeros((0, shape.num_moe_layers, shape.top_k), np.uint16)
    assert rank_on_traffic(None, MODEL, shape, none) == {"changes": [], "tokens": 0}
    (alone,) = asked[0].nodes
    assert (asked[0].head, alone.name, alone.link) == (HERE, HERE, None)
    assert alone.devices[0].memory_bytes == node().hardware.memory_bytes
    assert alone.devices[0].figures_from == "probed"


def test_what_the_planner_refuses_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(PotluckError, match=r"nowhere\.yaml") as caught:
        rank_on_traffic(
            tmp_path / "nowhere.yaml", MODEL, open_model(MODEL).shape, np.zeros((0, 0, 0), np.uint16)
        )
    assert "\n" not in str(caught.value)
