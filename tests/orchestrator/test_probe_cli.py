"""`potluck probe` shows what it found; here, what lies there from an earlier time."""

from __future__ import annotations

from pathlib import Path

import pytest

from placement.given.probe import HERE, probe_path_here, write_probe
from tests.orchestrator.command_line import Potluck, document
from tests.placement.given.probes import gpu, node, probe
from workers.probe.hardware import hardware


def test_cards_have_a_table_of_their_own(
    potluck: Potluck, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = node(gpus=(gpu("cuda:0"), gpu("cuda:1"))).model_copy(update={"hardware": hardware()})
    write_probe(probe(HERE, {HERE: here}).model_copy(update={"links": {}}), probe_path_here())
    code, out, err = potluck("probe")
    assert code == 0, err
    lines = [line.split() for line in out.splitlines()]
    assert [HERE, "cuda:0", HERE, "cuda:1"] in lines
    for row in (
        "memory free 23.0 GB 23.0 GB",
        "to RAM, pageable, GB/s 5.0 5.0",
        "there and back, µs 20 20",
        "q8_0, one row, GFLOP/s 1400.0 1400.0",
    ):
        assert row.split() in lines
    assert "nothing has changed" in err
    assert document(potluck("probe", "--json"))["nodes"][HERE]["gpus"][1]["round_trip_s"] == 2e-5


def test_without_a_card_there_is_no_such_table(
    potluck: Potluck, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = node().model_copy(update={"hardware": hardware()})
    write_probe(probe(HERE, {HERE: here}).model_copy(update={"links": {}}), probe_path_here())
    code, out, _ = potluck("probe")
    assert code == 0
    assert "cards" not in out
