"""One thread a test process: the tiny models are too small to share. And the command line as a fixture."""

from __future__ import annotations

import pytest
import torch

from orchestrator.cli.app import load, run
from tests.orchestrator.command_line import Potluck

torch.set_num_threads(1)


@pytest.fixture
def potluck(capsys: pytest.CaptureFixture[str]) -> Potluck:
    """Runs a command line in this process: exit code, standard output, standard error."""

    def potluck(*arguments: object) -> tuple[int, str, str]:
        given = [str(argument) for argument in arguments]
        code = run(load(given), given)
        output = capsys.readouterr()
        return code, output.out, output.err

    return potluck
