"""What `potluck serve` refuses before it loads a model. `serving/test_engine.py` lets it serve."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.cli.serve import name_for_clients, written_s
from tests.orchestrator.command_line import Potluck, says
from tests.orchestrator.serving.served import MODEL


@pytest.mark.parametrize("name", ["", "  ", "\u3000", "a\nb", "a\x1b[1m", "\udcff", "x" * 256])
def test_a_name_that_is_none_is_refused(potluck: Potluck, name: str) -> None:
    code, out, err = potluck("serve", "--model", MODEL, "--port", 0, "--name", name)
    assert (code, out) == (2, "")
    assert says(err, "--name … expected 1 to 255 characters that can be printed"), err
    assert len(err) < 400


def test_a_models_own_name_that_cannot_be_printed_is_refused(potluck: Potluck, tmp_path: Path) -> None:
    model = tmp_path / "a\nb"
    model.mkdir()
    for path in MODEL.iterdir():
        (model / path.name).symlink_to(path)
    code, _, err = potluck("serve", "--model", model, "--port", 0)
    assert code == 2
    assert says(err, "the name of --model: … give one by --name"), err


def test_a_model_is_called_as_its_directory_or_whole_file(tmp_path: Path) -> None:
    assert name_for_clients(None, tmp_path / "Step-3.5-Flash") == "Step-3.5-Flash"
    assert name_for_clients(None, tmp_path / "flash-q4-00001-of-00003.gguf") == "flash-q4"
    assert name_for_clients("stepfun/Step 3.5", tmp_path / "x") == "stepfun/Step 3.5"


def test_a_model_was_written_when_its_weights_were(tmp_path: Path) -> None:
    for second, name in enumerate(("b.safetensors", "a.safetensors", "digests.json"), start=7):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (second, second))
    assert written_s(tmp_path) == 8
    assert written_s(tmp_path / "b.safetensors") == 7


def test_more_drafts_than_the_model_has_name_their_option(potluck: Potluck) -> None:
    code, out, err = potluck("serve", "--model", MODEL, "--port", 0, "--mtp", 4)
    assert (code, out) == (2, "")
    assert says(err, "--mtp 4: … announces 3 MTP layers … expected 0 to 3"), err
