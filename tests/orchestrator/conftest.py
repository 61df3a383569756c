"""One thread a test process: the tiny models are too small to share. And the command line as a fixture."""

from __future__ import annotations

import sys

import pytest
import torch

from orchestrator.cli.main import main
from tests.orchestrator.command_line import Potluck

torch.set_num_threads(1)


@pytest.fixture
def potluck(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Potluck:
    """Runs a command line in this process: exit code, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["potluck", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        output = capsys.readouterr()
        return int(stopped.value.code or 0), output.out, output.err

    return run
