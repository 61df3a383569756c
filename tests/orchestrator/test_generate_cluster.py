"""`generate --cluster`: what keeps a run on a cluster from beginning, in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.orchestrator.cluster.launcher_document import write_launcher
from tests.orchestrator.command_line import Potluck, says
from tests.orchestrator.processes import DEADLINE_S, run

ASKED = ("--token-ids", "5,6")


def test_a_cluster_that_does_not_run_is_told_of(potluck: Potluck, tmp_path: Path) -> None:
    file = write_launcher(tmp_path)
    code, out, err = potluck("generate", "--cluster", file, *ASKED)
    assert (code, out) == (2, "")
    assert says(err, "run.json: expected a running cluster, found none: run `potluck up` first")


def test_nobody_whose_cluster_does_not_run_waits_for_torch(tmp_path: Path) -> None:
    program = """
        import sys
        from orchestrator.cli.main import main
        try:
            main()
        finally:
            assert not {"torch", "ray"} & set(sys.modules)
    """
    with run(program, "generate", "--cluster", write_launcher(tmp_path), *ASKED) as process:
        _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 2
    assert says(err, "expected a running cluster, found none")


@pytest.mark.parametrize("option", ["--workers", "--survive"])
def test_it_runs_its_own_plan(option: str, potluck: Potluck, tmp_path: Path) -> None:
    file = write_launcher(tmp_path)
    code, _, err = potluck("generate", "--cluster", file, option, 2, *ASKED)
    assert code == 2
    assert says(err, "--cluster: runs its own plan; leave out --plan, --workers, --survive and --ray-address")


def test_without_a_cluster_a_model_is_asked_for(potluck: Potluck) -> None:
    code, _, err = potluck("generate", *ASKED)
    assert code == 2
    assert says(err, "expected --model DIR, or --cluster CLUSTER.yaml of a cluster that runs")


def test_up_and_status_where_this_is_not_the_head(potluck: Potluck, tmp_path: Path) -> None:
    file = write_launcher(tmp_path)
    code, _, err = potluck("up", file, "--model", tmp_path)
    assert code == 2
    assert says(err, "head: study is at 192.168.1.10, which is not this box")
    code, _, err = potluck("status", file)
    assert code == 2
    assert says(err, "expected a running cluster, found none")
