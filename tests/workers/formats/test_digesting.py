"""Digests are made behind what runs, by one process at a time, and are as good as any others."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tests.orchestrator.processes import wait_until
from tests.tiny_checkpoint import write_random_checkpoint
from workers.formats.digesting import DigestsBehind, are_wanted, make_missing, only_one
from workers.formats.digests import ENDING, compare, current_digests, read_digests


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write_random_checkpoint(tmp_path / "m", seed=1)


def makers(model: Path) -> list[psutil.Process]:
    """Processes that make the digests of this model."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "workers.formats.digesting" in words and str(model) in words:
            found.append(process)
    return found


def test_they_are_made_meanwhile_at_the_lowest_priority(model: Path) -> None:
    with DigestsBehind(model, after_s=0.0):
        wait_until(lambda: current_digests(model) is not None)
    digests = current_digests(model)
    assert digests is not None
    assert list(compare(model, digests)) == []
    assert not are_wanted(model)
    assert makers(model) == []


def test_it_ends_with_its_context_and_keeps_what_it_has_read(model: Path) -> None:
    # A file that belongs to the model, as tokenizers do, and takes long to read.
    with (model / "large.json").open("wb") as file:
        file.truncate(2**38)
    niceness: list[int] = []

    def reads_it() -> bool:
        for process in makers(model):
            niceness[:] = [process.nice()]
            return any(file.path.endswith("large.json") for file in process.open_files())
        return False

    with DigestsBehind(model, after_s=0.0):
        wait_until(reads_it)
    assert niceness == [19]
    assert makers(model) == []
    known = read_digests(model / ENDING)
    assert not known.complete
    assert known.by_name["model.safetensors"].is_whole(known.range_bytes)
    assert are_wanted(model)


def test_what_runs_for_a_moment_begins_nothing(model: Path) -> None:
    with DigestsBehind(model):
        pass
    assert are_wanted(model)
    assert not (model / ENDING).exists()


def test_only_one_process_makes_them(model: Path) -> None:
    with only_one(model) as first:
        assert first
        make_missing(model)
        assert not (model / ENDING).exists()
    make_missing(model)
    assert current_digests(model) is not None
