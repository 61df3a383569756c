"""`potluck generate` over worker processes: the ids of one process, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from placement.plan_file import write_plan
from tests.forks.forks import Forks
from tests.orchestrator.command_line import Potluck, document
from tests.orchestrator.processes import DEADLINE_S, MARK, is_running, marked, start, wait_until
from tests.orchestrator.random_plan import random_plan
from tests.tiny_checkpoint import write_random_checkpoint
from workers.model_config import Step35Config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("cli-cluster") / "model", seed=2, tokenizer=True)


@pytest.fixture
def mark() -> Iterator[str]:
    """Marks the processes of a command; they must be gone soon after the test."""
    value = f"test_cli_cluster-{os.getpid()}"
    yield value
    wait_until(lambda: not marked(value))


def started(mark: str, *arguments: object) -> subprocess.Popen[str]:
    return start("-m", "orchestrator.cli.main", *arguments, environment={MARK: mark})


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        pytest.param(signal.SIGTERM, marks=pytest.mark.long),
        pytest.param(signal.SIGHUP, marks=pytest.mark.long),
    ],
)
def test_an_interrupted_generation_leaves_no_process_behind(
    number: signal.Signals, model_dir: Path, mark: str
) -> None:
    arguments = ("--token-ids", "5,6,7", "--max-tokens", 4000, "--ignore-eos", "--workers", 1)
    dtype = ("--dtype", "float32")
    with started(mark, "generate", "--model", model_dir, *arguments, *dtype) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1), process.stderr.read()
        assert marked(mark)
        # As a terminal does: to the whole group, and more than once.
        for _ in range(2 if number is signal.SIGINT else 1):
            (os.killpg if number is signal.SIGINT else os.kill)(process.pid, number)
        _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 128 + number, err
    assert "starting one worker on this machine\n" in err
    assert "Traceback" not in err
    # Nobody planned for a context.
    assert "was made for texts of" not in err


@pytest.mark.usefixtures("quick_workers")
def test_the_command_gives_the_ids_that_one_process_gives_and_leaves_no_worker(
    model_dir: Path, potluck: Potluck, forks: Forks
) -> None:
    before = len(forks.pids)
    arguments = ("generate", "--model", model_dir, "--token-ids", "5,6,7", "--max-tokens", 20)
    arguments += ("--ignore-eos", "--json")
    spread = document(potluck(*arguments, "--workers", 2, "--mtp", 3))
    assert len(forks.pids) == before + 2
    assert not any(map(is_running, forks.pids))
    assert spread["token_ids"] == document(potluck(*arguments, "--workers", 0))["token_ids"]
    assert spread["remote_layers_per_token"] > 0
    assert [worker["name"] for worker in spread["workers"]] == ["worker-0", "worker-1"]
    assert sum(worker["share_of_activations"] for worker in spread["workers"]) == pytest.approx(1.0)


@pytest.mark.usefixtures("quick_workers")
def test_a_plan_for_several_boxes_runs_on_this_one(
    model_dir: Path, potluck: Potluck, tmp_path: Path, forks: Forks
) -> None:
    """Without --ray-address no machine needs to bear the plan's names."""
    plan = random_plan(Step35Config.load(model_dir).shape("tiny"), 2, seed=4)
    apart = replace(plan, tiers=tuple(replace(tier, node=f"box-{tier.name}") for tier in plan.tiers))
    write_plan(apart, tmp_path / "plan.json")
    arguments = ("generate", "--model", model_dir, "--token-ids", "5,6,7", "--max-tokens", 6, "--ignore-eos")
    code, out, err = potluck(*arguments, "--plan", tmp_path / "plan.json")
    assert code == 0, err
    count = len(plan.asked_workers)
    assert f"{plan.model}: the head on the CPU; experts: " in " ".join(err.split())
    assert f"starting {count} workers on this machine; --ray-address starts them on the plan's boxes" in err
    assert out == potluck(*arguments, "--dtype", "float32")[1]
    assert not any(map(is_running, forks.pids))
