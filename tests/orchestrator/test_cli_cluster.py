"""`potluck generate` over worker processes: the same ids, and nothing left when it is interrupted."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.orchestrator.processes import start, wait_until
from tests.orchestrator.test_cluster import ray_processes
from tests.tiny_checkpoint import write_random_checkpoint

pytestmark = pytest.mark.slow

GONE_WITHIN_S = 20.0


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("cli-cluster") / "model", seed=2, tokenizer=True)


@pytest.fixture
def before() -> Iterator[set[int]]:
    """Processes that were there before; Ray's others must be gone soon after the test."""
    pids = set(psutil.pids())
    yield pids
    wait_until(lambda: not ray_processes(pids), GONE_WITHIN_S)


def potluck(*arguments: object) -> subprocess.Popen[str]:
    return start("-m", "orchestrator.cli.main", *arguments)


@pytest.mark.usefixtures("before")
def test_worker_processes_give_the_ids_that_one_process_gives(model_dir: Path) -> None:
    def document(*more: object) -> dict[str, Any]:
        arguments = ("--token-ids", "5,6,7", "--max-tokens", 20, "--ignore-eos", "--json")
        out, err = potluck("generate", "--model", model_dir, *arguments, *more).communicate(timeout=120)
        assert out, err
        parsed: dict[str, Any] = json.loads(out)
        return parsed

    spread = document("--workers", 2, "--mtp", 3)
    assert spread["token_ids"] == document("--workers", 0)["token_ids"]
    assert spread["remote_layers_per_token"] > 0
    assert [worker["name"] for worker in spread["workers"]] == ["worker-0", "worker-1"]
    assert sum(worker["share_of_activations"] for worker in spread["workers"]) == pytest.approx(1.0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_generation_leaves_no_process_behind(
    number: signal.Signals, model_dir: Path, before: set[int]
) -> None:
    arguments = ("--token-ids", "5,6,7", "--max-tokens", 4000, "--ignore-eos", "--workers", 2)
    with potluck("generate", "--model", model_dir, *arguments) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1), process.stderr.read()
        assert ray_processes(before)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert err == ""
