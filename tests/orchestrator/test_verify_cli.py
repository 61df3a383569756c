"""`potluck verify` as a user calls it: made once, compared after, and one line for a changed byte."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.orchestrator.command_line import Potluck, document, says
from tests.orchestrator.test_json_doc import documented, printed, sections
from tests.tiny_checkpoint import write_random_checkpoint


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # The test's process goes on after it, and must not be the last to be served.
    monkeypatch.setattr("workers.formats.digesting.os.nice", lambda increment: increment)
    monkeypatch.setattr("workers.formats.digesting.psutil.Process", FirstProcess)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write_random_checkpoint(tmp_path / "m", seed=1)


class FirstProcess:
    def ionice(self, kind: int) -> None:
        del kind


def test_made_then_the_same_then_a_byte_changed(potluck: Potluck, model: Path, tmp_path: Path) -> None:
    made = document(potluck("verify", model, "--json"))
    assert printed(made) == documented(sections("json.md")["`potluck verify`"])
    assert made["result"] == "made"
    assert made["digests"] == str(model / "potluck-digests.json")
    assert made["bytes"] == sum(file["bytes"] for file in made["files"])
    assert document(potluck("verify", model, "--json"))["result"] == "same"
    weights = model / "model.safetensors"
    with weights.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")
    code, out, err = potluck("verify", model)
    assert (code, out) == (1, "")
    last = f"{weights.stat().st_size - 1:,}"
    assert says(err, f"model.safetensors: bytes 0 to {last}: not as … potluck-digests.json has them; copy")
    other = tmp_path / "of-another-box.json"
    (model / "potluck-digests.json").rename(other)
    assert potluck("verify", model, "--against", other)[0] == 1
    assert document(potluck("verify", model, "--json"))["result"] == "made"
    assert potluck("verify", model, "--against", model / "potluck-digests.json")[0] == 0


def test_where_the_model_is_read_only_they_lie_in_the_cache(
    potluck: Potluck, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write anywhere, so that the answer of the system is put in its place."""
    may = os.access

    def may_not_write(path: Path, mode: int, **how: bool) -> bool:
        return may(path, mode, **how) and not (Path(path) == model and mode & os.W_OK)

    monkeypatch.setattr("workers.formats.digesting.os.access", may_not_write)
    made = document(potluck("verify", model, "--json"))
    assert Path(made["digests"]).parent == tmp_path / "cache" / "potluck" / "digests"
    assert not (model / "potluck-digests.json").exists()
    assert document(potluck("verify", model, "--json"))["result"] == "same"


def test_no_model_is_one_line(potluck: Potluck, tmp_path: Path) -> None:
    code, out, err = potluck("verify", "step-3.5-flash")
    assert (code, out) == (2, "")
    assert says(err, "built in for planning and simulation, without weights")
