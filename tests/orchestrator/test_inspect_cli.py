"""`potluck inspect`: bytes and types that add up to the file's, and whether they fit."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gguf
import pytest

from benchmarks.random_gguf import SMALL, FileTypes, write_random_gguf
from orchestrator.cli.inspect import Fit, layer_ranges, verdict
from tests.orchestrator.command_line import Potluck, document, says
from tests.tiny_checkpoint import write_random_checkpoint
from tests.workers.formats.gguf_files import trunk_and_mtp
from workers.memory.free import FreeMemory

SHAPE = replace(SMALL, moe_layers=4, experts=3, top_k=2, mtp_layers=2)
TYPES = FileTypes((("q4_k", "q4_k", "q5_k"), ("iq3_s", "iq3_s", "iq4_xs")), "q8_0", "q6_k", "q5_k")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_gguf(tmp_path_factory.mktemp("gguf") / "mixed.gguf", SHAPE, TYPES)


def test_bytes_are_those_of_the_file_s_tensors(potluck: Potluck, path: Path) -> None:
    made = document(potluck("inspect", path, "--json", "--context", 1000))
    tensors = {tensor.name: int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors}
    assert made["tensors"] == len(tensors)
    assert made["total_bytes"] == sum(tensors.values())
    assert made["expert_bytes"] == sum(size for name, size in tensors.items() if "_exps" in name)
    mtp = [size for name, size in tensors.items() if name.startswith(("blk.5.", "blk.6."))]
    assert made["mtp_bytes"] == sum(mtp)
    assert made["head_bytes"] == made["total_bytes"] - made["expert_bytes"] - made["mtp_bytes"]
    assert sum(run["bytes"] for run in made["types"]) == made["total_bytes"]
    # Two full layers of five, three and the MTP layers slide; keys and values of two heads of 64.
    assert made["kv_cache_bytes"] == 2 * 2 * 64 * 2 * (2 * 1000 + 5 * 32)
    assert (made["model"], made["context"], made["notes"]) == ("mixed", 1000, [])
    assert made["fits"] == (made["missing_bytes"] == 0)


def test_types_are_told_by_layer_and_matrix(potluck: Potluck, path: Path) -> None:
    made = document(potluck("inspect", path, "--json"))
    experts = {
        (run["matrix"], run["type"]): run["layers"]
        for run in made["types"]
        if run["part"] == "routed experts"
    }
    odd, even = [1, 3], [2, 4]
    assert experts == {
        ("gate", "q4_k"): odd, ("gate", "iq3_s"): even, ("up", "q4_k"): odd, ("up", "iq3_s"): even,
        ("down", "q5_k"): odd, ("down", "iq4_xs"): even,
    }  # fmt: skip
    assert {run["type"] for run in made["types"] if run["part"] in ("attention", "shared experts")} == {
        "q8_0"
    }
    code, out, _ = potluck("inspect", path)
    assert code == 0
    assert "routed experts: gate, up" in out
    assert "q4_k 1, 3, iq3_s 2, 4" in out


def test_a_directory_is_told_too(potluck: Potluck, tmp_path: Path) -> None:
    directory = write_random_checkpoint(tmp_path / "m", seed=1)
    made = document(potluck("inspect", directory, "--json"))
    assert {run["type"] for run in made["types"]} == {"float32"}
    header = int.from_bytes((directory / "model.safetensors").read_bytes()[:8], "little")
    assert made["total_bytes"] == (directory / "model.safetensors").stat().st_size - 8 - header


def test_mtp_layers_beside_the_file_count_and_are_told(potluck: Potluck, path: Path, tmp_path: Path) -> None:
    whole = document(potluck("inspect", path, "--json"))
    trunk, mtp = trunk_and_mtp(path, tmp_path, SHAPE.layers)
    made = document(potluck("inspect", trunk, "--json"))
    assert made["notes"] == [f"MTP layers are those of {mtp.name}"]
    assert {**made, "model": "", "notes": []} == {
        **whole, "model": "", "notes": [], "free_bytes": made["free_bytes"],
    }  # fmt: skip
    mtp.unlink()
    alone = document(potluck("inspect", trunk, "--json"))
    assert alone["mtp_bytes"] == 0
    assert alone["kv_cache_bytes"] < made["kv_cache_bytes"]


def test_what_is_no_model_and_too_long_a_context_are_one_line(
    potluck: Potluck, path: Path, tmp_path: Path
) -> None:
    code, _, err = potluck("inspect", path, "--context", 4097)
    assert (code, says(err, "--context 4097: expected at most 4096")) == (2, True)
    (tmp_path / "m.gguf").write_bytes(path.read_bytes()[:-100])
    code, _, err = potluck("inspect", tmp_path / "m.gguf")
    assert (code, says(err, "m.gguf: tensor … ends at byte … truncated")) == (2, True)
    code, _, err = potluck("inspect", "step-3.5-flash")
    assert (code, says(err, "without weights; expected a directory")) == (2, True)


@pytest.mark.parametrize(
    ("free_bytes", "expected"),
    [
        (10**11, "It fits into this machine's memory."),
        (3 * 10**9, "50% of the routed experts fit beside the rest"),
        (10**9, "not even the head fits"),
    ],
)
def test_the_verdict_says_what_is_missing(free_bytes: int, expected: str) -> None:
    free = FreeMemory(free_bytes, "this machine")
    head = 10**9
    experts = 2 * (free.usable_bytes - head - 2 * 10**8 - 210_000_000) if free_bytes == 3 * 10**9 else 10**9
    fit = Fit(head, experts, 10**8, 10**8, free)
    assert expected in verdict(fit)
    assert (fit.missing_bytes == 0) == (free_bytes == 10**11)


def test_layers_are_told_in_short() -> None:
    assert layer_ranges([]) == ""
    assert layer_ranges([3]) == "3"
    assert layer_ranges([0, 1, 2, 7, 9, 11, 13, 20]) == "0-2, 7-13 by 2, 20"
    assert layer_ranges([1, 3, 5]) == "1, 3, 5"


def test_nothing_loads_torch(path: Path) -> None:
    """That would take longer than all the rest."""
    program = (
        "import sys; from orchestrator.cli.main import main\n"
        f"sys.argv = ['potluck', 'inspect', {str(path)!r}]\n"
        "try: main()\n"
        "finally: assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
