"""Mistakes in the command line itself: one line and exit code 2, as for every other mistake."""

from __future__ import annotations

import re
import resource
from pathlib import Path

import pytest

from placement.policies.registry import POLICIES, RUN_POLICIES
from placement.workload import DEFAULT_CONTEXT
from tests.orchestrator.command_line import Potluck, says
from tests.orchestrator.test_plan_cli import CLUSTER

PLAN = ("plan", "cluster.yaml", "--model", "step-3.5-flash")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((*PLAN, "--tokens-per-step", 0), "--tokens-per-step: … at least 1 … '0'"),
        ((*PLAN, "--context", "1.5"), "--context: … whole number … '1.5' … `potluck plan"),
        ((*PLAN, "--head-bits", "many"), "--head-bits: … 'many'"),
        ((*PLAN, "--polcy", "uniform"), "potluck plan: … --polcy … --policy"),
        ((*PLAN, "other.yaml"), "unexpected extra argument"),
        (("generate", "--prompt", "Dear", "all,"), "(all,): text with spaces goes into quotes; see `potluck"),
        (("serve", "models"), "(models): a model is given as --model models; see `potluck serve --help`"),
        (("serve", "--model", "m", "--most-delay", "inf"), "--most-delay inf: … seconds from 0 upwards"),
        ((*PLAN, "--quant"), "potluck plan: … --quant … requires an argument … `potluck plan --help`"),
        (
            ("generate", "--mtp"),
            "potluck generate: … --mtp … requires an argument … `potluck generate --help`",
        ),
        (("generate", "--mtp", "--json"), "--mtp: … whole number … '--json' … `potluck generate --help`"),
        (
            ("keys", "add", "k.json", "ann", "--requests-at-once"),
            "potluck keys add: … `potluck keys add --help`",
        ),
        (("generate", "--json=3"), "potluck generate: … --json … does not take a value … `potluck generate"),
        (("plan",), "potluck plan: … missing … CLUSTER … `potluck plan --help`"),
        (("simulate", "plan.json"), "missing … --cluster"),
        (("whatif", "a.yaml", "--model", "m", "--context", -1), "--context: … at least 0"),
        ((*PLAN, "--head-bits", "nan"), "--head-bits: "),
        (("study", "s.yaml", "--processes", 0), "--processes: … at least 1 … '0'"),
        (("stats", "--model", "m", "--out", "o.npz"), "missing … TEXT"),
        (("generate", "--model", "m", "--dtype", "q4"), "--dtype: … 'q4' … 'float32', 'bfloat16'"),
        (("stats", "a.txt", "--model", "nowhere", "--out", "o.npz"), "nowhere: no such file or directory"),
        (("generate", "--model", "m", "--workers", 65), "--workers: … at most 64"),
        (("demo", "--max-tokens", 1), "--max-tokens: … at least 2 … '1'"),
        (("plann",), "'plann' … 'plan' … `potluck --help`"),
        (("--vresion",), "--vresion"),
        (("plan", "a\nb[red].yaml:b:", "--model", "step-3.5-flash"), "a b[red].yaml:b:"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    potluck: Potluck, arguments: tuple[object, ...], expected: str
) -> None:
    code, out, err = potluck(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert says(err, expected), err


def test_a_full_disk_is_one_line_and_leaves_nothing(potluck: Potluck, tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    given = ("plan", tmp_path / "cluster.yaml", "--model", "step-3.5-flash", "--quant", "q4")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        code, out, err = potluck(*given, "--policy", "uniform", "--out", tmp_path / "plan.json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (code, out) == (2, "")
    assert says(err, f"error: … {tmp_path / 'plan.json'}: File too large"), err
    assert [path.name for path in tmp_path.iterdir()] == ["cluster.yaml"]


def test_without_a_command_there_is_help(potluck: Potluck) -> None:
    code, out, _ = potluck()
    assert code == 0
    assert "simulate" in out


@pytest.mark.parametrize("command", ["plan", "simulate", "whatif"])
def test_every_command_assumes_the_same_context(
    potluck: Potluck, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 400)
    (line,) = [line for line in potluck(command, "--help")[1].splitlines() if "--context" in line]
    assert re.search(rf"default {DEFAULT_CONTEXT:,}, or a given plan", line)


def test_whatif_lists_its_policies(potluck: Potluck, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 400)
    code, out, _ = potluck("whatif", "--help")
    assert code == 0
    assert ", ".join((*POLICIES, *RUN_POLICIES)) in out
