"""Commands that plan say in one line which node has neither typed nor measured figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cluster.launcher_text import Draft, launcher_text
from tests.orchestrator.command_line import Potluck, says

NODES = {"study": "192.168.1.10", "attic": "192.168.1.11"}
WITH_FIGURES = "- {name: ram, kind: ram, memory_bytes: 96GB, bandwidth_gbytes_per_s: 75, ffn_gflops: 900}"
STUDY = """\
name: trial
model: step-3.5-flash
clusters: [cluster.yaml]
quants: [q4]
policies: [uniform]
traces: [{name: general, domain: general, tokens: 200}]
"""


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `potluck init` writes, which has no figures."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "cluster.yaml"
    path.write_text(launcher_text(Draft("home", "study", NODES, "anna", "~/.ssh/id_ed25519")))
    (tmp_path / "study.yaml").write_text(STUDY)
    return path


@pytest.mark.parametrize(
    "command",
    [
        ("plan", "cluster.yaml", "--model", "step-3.5-flash", "--quant", "q4"),
        ("whatif", "cluster.yaml", "--model", "step-3.5-flash", "--quant", "q4"),
        ("study", "study.yaml", "--out", "results"),
    ],
)
def test_a_file_without_figures_leads_to_the_probe(
    command: tuple[str, ...], potluck: Potluck, bare: Path
) -> None:
    code, out, err = potluck(*command)
    assert (code, out) == (2, "")
    expected = (
        "cluster.yaml: node 'attic' has no device typed or measured: run `potluck probe … cluster.yaml`"
    )
    assert says(err, expected), err
    assert {path.name for path in bare.parent.iterdir()} == {"cluster.yaml", "study.yaml"}


def test_a_link_that_is_missing_is_named(potluck: Potluck, bare: Path) -> None:
    text = bare.read_text()
    for address in NODES.values():
        line = f"        address: {address}\n"
        text = text.replace(line, f"{line}        devices:\n          {WITH_FIGURES}\n")
    bare.write_text(text)
    code, _, err = potluck("plan", "cluster.yaml", "--model", "step-3.5-flash", "--quant", "q4")
    assert code == 2
    assert says(
        err,
        "node 'attic' has no link to the head typed or measured … or type it under links: - {node: attic, "
        "hardware: ethernet-2.5g}",
    )
