"""`potluck generate` over worker processes: the same ids, and nothing left when it is interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.orchestrator.command_line import Potluck, document
from tests.orchestrator.processes import DEADLINE_S, MARK, marked, start, wait_until
from tests.tiny_checkpoint import write_random_checkpoint

# In one process of several: Rays that start at once take each other's time.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]


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


def test_worker_processes_give_the_ids_that_one_process_gives(
    model_dir: Path, mark: str, potluck: Potluck, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("generate", "--model", model_dir, "--token-ids", "5,6,7", "--max-tokens", 20)
    arguments += ("--ignore-eos", "--json")
    with monkeypatch.context() as patch:
        patch.setenv(MARK, mark)
        spread = document(potluck(*arguments, "--workers", 2, "--mtp", 3))
    assert spread["token_ids"] == document(potluck(*arguments, "--workers", 0))["token_ids"]
    assert spread["remote_layers_per_token"] > 0
    assert [worker["name"] for worker in spread["workers"]] == ["worker-0", "worker-1"]
    assert sum(worker["share_of_activations"] for worker in spread["workers"]) == pytest.approx(1.0)


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
    arguments = ("--token-ids", "5,6,7", "--max-tokens", 4000, "--ignore-eos", "--workers", 2)
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
    assert (process.returncode, err) == (128 + number, "starting 2 workers on this machine\n")
