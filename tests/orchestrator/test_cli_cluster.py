"""An interrupted `potluck generate` over worker processes leaves nothing; its ids are in test_cluster.py."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

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
    assert process.returncode == 128 + number, err
    assert "starting 2 workers on this machine\n" in err
    assert "Traceback" not in err
    # Nobody planned for a context.
    assert "was made for texts of" not in err
