"""A box measures itself, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from placement.errors import InputError
from placement.given.probe_figures import Node
from tests.forks.forks import Forks
from workers.probe.echo import HIDDEN_SIZE
from workers.probe.experts import ROWS, SomeExperts, Width, form_named, probe_rows, width_of
from workers.probe.memory import thread_numbers
from workers.probe.round_trips import Trips

TINY = Path(__file__).parents[3] / "models" / "potluck-tiny"


def run(forks: Forks, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = forks.command(["-m", "workers.probe", *arguments])
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_box_measures_itself(tmp_path: Path, forks: Forks) -> None:
    done = run(forks, "--forms", "q8_0", "--seconds", "0.5", "--folder", str(tmp_path))
    assert done.returncode == 0, done.stderr
    node = Node.model_validate_json(done.stdout)
    assert [rate.form for rate in node.kernels] == ["q8_0"]
    assert node.kernels[0].rows == ROWS
    # More rows of an expert share one reading of it.
    assert node.kernels[0].flops_per_s[-1] > node.kernels[0].flops_per_s[0] / 2
    assert 1e8 < node.read_bytes_per_s < 1e13
    assert node.disk is not None
    assert node.disk.folder == str(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert "experts in q8_0" in done.stderr
    # As a probe starts it.
    command = [sys.executable, "-m", "workers.probe", "--fingerprint"]
    assert subprocess.check_output(command, text=True).strip() == node.hardware.fingerprint


def test_experts_are_as_wide_as_the_models_where_the_form_allows() -> None:
    assert width_of(TINY) == Width(128, 16)
    assert width_of(Path("/no/model")) == Width(4096, 1280)
    some = SomeExperts.make(form_named("bfloat16"), 1, Width(128, 16))
    assert some.width == Width(128, 16)
    assert some.rows(2, 2).hidden.shape == (4, 128)
    # Blocks of 256.
    assert SomeExperts.make(form_named("q4_k"), 1, Width(128, 16)).width == Width(4096, 1280)


def test_an_unknown_form_is_one_line(forks: Forks) -> None:
    done = run(forks, "--forms", "q9_k", "--seconds", "0.5")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("form 'q9_k': expected one of")
    with pytest.raises(InputError):
        form_named("fp8_e4m3")


def test_threads_double_up_to_the_cores() -> None:
    assert [thread_numbers(cores) for cores in (1, 2, 6)] == [(1,), (1, 2), (1, 2, 4, 6)]


def test_both_ways_are_told_apart_by_the_two_forms() -> None:
    # 100 MB/s there, 50 MB/s back.
    there_s, back_s = (4 * HIDDEN_SIZE + 68) / 100e6, (4 * HIDDEN_SIZE + 1) / 50e6
    bfloat16_s = (2 * HIDDEN_SIZE + 68) / 100e6 + back_s
    trips = Trips((1e-3,) * 20, there_s + back_s, bfloat16_s)
    assert trips.there_bytes_per_s == pytest.approx(100e6)
    assert trips.back_bytes_per_s == pytest.approx(50e6)
    assert trips.round_trip_s == pytest.approx(1e-3 - there_s - back_s)
    noisy = Trips((1e-3,) * 20, 1e-6, 1e-6)
    assert 0 < noisy.there_bytes_per_s < float("inf")


def test_rows_ask_for_what_they_are_told() -> None:
    ids = np.array([[3, -1], [4, 5]], np.int32)
    rows = probe_rows(ids)
    assert rows.num_rows == 2
    assert (rows.expert_ids == ids).all()
