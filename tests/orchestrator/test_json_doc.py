"""docs/json.md lists exactly the keys that commands print, and the studies' page the columns of results."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from placement.answers.study.results import Row
from placement.given.stats import RoutingStats
from placement.given.traces import CODING, GENERAL, SyntheticRouter
from placement.model_shape import STEP_3_5_FLASH
from tests.orchestrator.command_line import Potluck, document
from tests.orchestrator.test_plan_cli import CLUSTER
from tests.orchestrator.test_study_cli import published
from tests.tiny_checkpoint import write_random_checkpoint

DOCS = Path(__file__).parents[2] / "docs"
KEY = re.compile(r"`(\w+)`")
LIST_OF = re.compile(r"list of ((?:`\w+`(?:, )?)+)")


def sections(page: str) -> dict[str, str]:
    """Text by heading."""
    parts = re.split(r"(?m)^##+ (.*)$", (DOCS / page).read_text(encoding="utf-8"))
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def documented(section: str) -> dict[str, set[str]]:
    """Keys of a section's tables, with those of the objects listed under each."""
    found = {}
    for cells in re.findall(r"(?m)^\| (`.*?) \| (.*) \|$", section):
        listed = LIST_OF.match(cells[1])
        for key in KEY.findall(cells[0]):
            found[key] = set(KEY.findall(listed[1])) if listed else set()
    return found


def printed(made: dict[str, Any]) -> dict[str, set[str]]:
    """The same of a document that a command printed."""
    return {
        key: set(value[0]) if isinstance(value, list) and value and isinstance(value[0], dict) else set()
        for key, value in made.items()
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("json") / "model", seed=2, tokenizer=True)


def test_of_stats_and_generate(potluck: Potluck, model: Path, tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("some words")
    counted = document(potluck("stats", text, "--model", model, "--out", tmp_path / "routing.npz", "--json"))
    assert printed(counted) == documented(sections("json.md")["`potluck stats`"])
    made = document(potluck("generate", "--model", model, "--token-ids", "5,6", "--max-tokens", 2, "--json"))
    assert printed(made) == documented(sections("json.md")["`potluck generate`"])


def test_of_inspect(potluck: Potluck, model: Path) -> None:
    made = document(potluck("inspect", model, "--json"))
    assert printed(made) == documented(sections("json.md")["`potluck inspect`"])


@pytest.mark.parametrize("name", [(), ("ethernet-2.5g",)])
def test_of_hardware(potluck: Potluck, name: tuple[str, ...]) -> None:
    made = document(potluck("hardware", *name, "--json"))
    assert printed(made) == documented(sections("json.md")["`potluck hardware`"])


def test_of_trace(potluck: Potluck, model: Path, tmp_path: Path) -> None:
    made = document(potluck("trace", "--model", model, "--tokens", 20, "--out", tmp_path / "t.npz", "--json"))
    assert printed(made) == documented(sections("json.md")["`potluck trace`"])


def test_of_stats_compare_and_drift(potluck: Potluck, tmp_path: Path) -> None:
    a, b = tmp_path / "a.npz", tmp_path / "b.npz"
    for path, domain in ((a, GENERAL), (b, CODING)):
        tokens = SyntheticRouter(STEP_3_5_FLASH).trace(domain, 200)
        RoutingStats.from_trace(STEP_3_5_FLASH, tokens, domain.name).save(path)
    made = document(potluck("stats", "compare", a, b, "--json"))
    assert printed(made) == documented(sections("json.md")["`potluck stats compare`"])
    few = ("--document-tokens", 40, "--false-alarm-rate", 0.1)
    made = document(potluck("stats", "drift", a, b, *few, "--json"))
    assert printed(made) == documented(sections("json.md")["`potluck stats drift`"])


def test_of_plan_simulate_and_whatif(potluck: Potluck, tmp_path: Path) -> None:
    cluster, plan, trace = tmp_path / "cluster.yaml", tmp_path / "plan.json", tmp_path / "trace.npz"
    cluster.write_text(CLUSTER)
    tokens = SyntheticRouter(STEP_3_5_FLASH).trace(GENERAL, 100)
    RoutingStats.from_trace(STEP_3_5_FLASH, tokens, "general").save(trace)
    given = (cluster, "--model", "step-3.5-flash", "--quant", "q4", "--policy", "uniform")
    export = ("--export", f"llama.cpp={tmp_path / 'overrides.txt'}", "--buffer", "attic-ram=RPC0[attic:1]")
    made = document(potluck("plan", *given, *export, "--out", plan, "--json"))
    assert printed(made) == documented(sections("json.md")["`potluck plan`"])
    changed = document(potluck("whatif", *given, "--stats", trace, "--json"))
    assert printed(changed) == documented(sections("json.md")["`potluck whatif`"])
    assert set(changed["now"]) == set(changed["changes"][0])
    simulated = document(potluck("simulate", plan, "--cluster", cluster, "--trace", trace, "--json"))
    assert set(simulated) <= set(KEY.findall(sections("simulator.md")["JSON"]))


def test_of_study_and_its_results(potluck: Potluck, tmp_path: Path) -> None:
    columns = {field.name for field in fields(Row)}
    page = sections("studies/README.md")["Your own"]
    assert documented(page[page.index("Columns of `results.csv`") :]).keys() == columns
    made = document(potluck("study", published(tmp_path), "--processes", 1, "--json"))
    assert set(made["cells"][0]) == columns
    assert made.keys() == documented(sections("json.md")["`potluck study`"]).keys()
