"""One thread a test process: the tiny models are too small to share. Ray with patience. The command line."""

from __future__ import annotations

import os

import pytest
import torch

from orchestrator.cli.app import load, run
from tests.orchestrator.command_line import Potluck
from tests.workers.gpu.conftest import card

__all__ = ("card",)

torch.set_num_threads(1)

# Ray gives its own processes a minute or less, which is not enough beside other work.
os.environ |= {
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_agent_register_timeout_ms": "600000",
    "RAY_gcs_server_request_timeout_seconds": "600",
    "RAY_health_check_timeout_ms": "600000",
}


@pytest.fixture
def potluck(capsys: pytest.CaptureFixture[str]) -> Potluck:
    """Runs a command line in this process: exit code, standard output, standard error."""

    def potluck(*arguments: object) -> tuple[int, str, str]:
        given = [str(argument) for argument in arguments]
        code = run(load(given), given)
        output = capsys.readouterr()
        return code, output.out, output.err

    return potluck
