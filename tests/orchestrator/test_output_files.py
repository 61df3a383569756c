"""No command replaces what it reads, and results go to devices and pipes as they are."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

import pytest

from orchestrator.chat_template import TEMPLATE_FILE
from placement.given.stats import RoutingStats
from placement.given.traces import GENERAL, SyntheticRouter
from placement.model_shape import STEP_3_5_FLASH
from tests.orchestrator.command_line import Potluck
from tests.orchestrator.test_plan_cli import CLUSTER
from tests.orchestrator.test_study_cli import published
from tests.tiny_checkpoint import write_random_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("files") / "model", seed=2, tokenizer=True)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    trace = SyntheticRouter(STEP_3_5_FLASH).trace(GENERAL, 20)
    RoutingStats.from_trace(STEP_3_5_FLASH, trace, "general").save(tmp_path / "routing.npz")
    os.link(tmp_path / "routing.npz", tmp_path / "routing.svg")
    return tmp_path


def plan_of(files: Path, *more: object) -> tuple[object, ...]:
    given = ("--quant", "q4", "--policy", "uniform", "--stats", files / "routing.npz", *more)
    return ("plan", files / "cluster.yaml", "--model", "step-3.5-flash", *given)


@pytest.mark.parametrize(
    ("out", "more", "what"),
    [
        ("cluster.yaml", (), "it is {files}/cluster.yaml, which this command reads"),
        ("routing.npz", (), "it is {files}/routing.npz, which this command reads"),
        ("routing.svg", (), "it is {files}/routing.npz, which this command reads"),
    ],
)
def test_plan_keeps_what_it_reads(
    potluck: Potluck,
    files: Path,
    out: str,
    more: tuple[str, ...],
    what: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(files)
    before = (files / out).read_bytes()
    code, _, err = potluck(*plan_of(files, *more, "--picture" if out.endswith("svg") else "--out", out))
    assert (code, err.count("\n")) == (2, 1)
    assert f"cannot write {out}: {what.format(files=files)}" in err
    assert (files / out).read_bytes() == before


def test_plan_keeps_the_plan_in_use(potluck: Potluck, files: Path) -> None:
    plan = files / "plan.json"
    potluck(*plan_of(files, "--out", plan))
    before = plan.read_bytes()
    again = ("plan", files / "cluster.yaml", "--model", "step-3.5-flash", "--quant", "q4")
    code, _, err = potluck(*again, "--current", plan, "--out", plan)
    assert (code, err.count("\n")) == (2, 1)
    assert "this command reads" in err
    assert plan.read_bytes() == before


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", TEMPLATE_FILE])
def test_stats_keeps_the_model_and_the_text(potluck: Potluck, model: Path, tmp_path: Path, name: str) -> None:
    copy, text = tmp_path / "model", tmp_path / "a.txt"
    shutil.copytree(model, copy)
    text.write_text("some words")
    (copy / TEMPLATE_FILE).write_text("{{ messages }}")
    names = {path.name for path in copy.iterdir()}
    target = copy / (name if name in names else next(n for n in names if n.endswith(".safetensors")))
    for out in (target, text):
        before = out.read_bytes()
        code, _, err = potluck("stats", text, "--model", copy, "--out", out)
        assert (code, err.count("\n")) == (2, 1)
        assert "this command reads" in err
        assert out.read_bytes() == before
    code, _, err = potluck("stats", text, "--model", copy, "--out", copy / "routing.npz")
    assert code == 0, err


def test_study_keeps_what_it_reads(potluck: Potluck, tmp_path: Path) -> None:
    file = published(tmp_path)
    (tmp_path / "grid").mkdir()
    os.link(file, tmp_path / "grid" / "report.html")
    code, _, err = potluck("study", file, "--processes", 1)
    assert (code, err.count("\n")) == (2, 1)
    assert "grid/report.html: it is" in err


def test_a_device_is_written_to_and_stays_one(potluck: Potluck, files: Path) -> None:
    code, _, err = potluck(*plan_of(files, "--out", "/dev/null"))
    assert code == 0, err
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_link_to_a_plan_stays_a_link(potluck: Potluck, files: Path) -> None:
    (files / "current.json").symlink_to("plan-1.json")
    code, _, err = potluck(*plan_of(files, "--out", files / "current.json"))
    assert code == 0, err
    assert (files / "current.json").is_symlink()
    assert json.loads((files / "plan-1.json").read_text())["policy"] == "uniform"
