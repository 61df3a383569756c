"""`potluck inspect`: bytes and types that add up to the file's, and whether they fit."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gguf
import psutil
import pytest
from safetensors.torch import load_file, save_file

from benchmarks.random_gguf import SMALL, FileTypes, write_random_gguf
from orchestrator.cli.inspect import Fit, layer_ranges, verdict
from tests.orchestrator.command_line import Potluck, document, says
from tests.tiny_checkpoint import write_random_checkpoint
from tests.workers.formats.gguf_files import trunk_and_mtp
from workers.memory.budget import PROCESS_BYTES, Need
from workers.memory.free import LEAST_MARGIN_BYTES, FreeMemory

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
    # Two full layers of five hold 8 pages of 128, three that slide 3 at a time: two heads of 64.
    assert made["kv_cache_bytes"] == 2 * 2 * 64 * 2 * 128 * (2 * 8 + 3 * 3)
    assert made["weight_bytes"] == made["head_bytes"]
    parts = ("weight_bytes", "expert_bytes", "kv_cache_bytes", "activation_bytes", "process_bytes")
    assert made["needed_bytes"] == sum(made[part] for part in parts)
    assert made["kv"] == "bfloat16"
    assert (made["model"], made["context"], made["notes"]) == ("mixed", 1000, [])
    assert made["problem"] is None
    assert made["fits"] == (made["missing_bytes"] == 0)
    drafting = document(potluck("inspect", path, "--json", "--context", 1000, "--mtp", 2))
    assert drafting["weight_bytes"] == made["head_bytes"] + made["mtp_bytes"]
    # Rows of 256 wait too: a pass of them touches 3 pages, and the second MTP layer may hold one more.
    assert drafting["kv_cache_bytes"] == 2 * 2 * 64 * 2 * 128 * (2 * 8 + 5 * 3) + 256 * 4 * 128 * (3 + 1)
    narrow = document(potluck("inspect", path, "--json", "--context", 1000, "--kv", "int8"))
    assert narrow["kv_cache_bytes"] == made["kv_cache_bytes"] * (64 + 4) // 128
    assert narrow["kv"] == "int8"
    _, out, _ = potluck("inspect", path, "--kv", "int8", "--mtp", 2)
    assert "Memory, with 4,096 positions of keys and values in int8 and 2 drafts a step" in " ".join(
        out.split()
    )


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
    assert (alone["mtp_bytes"], alone["problem"]) == (0, None)
    code, _, err = potluck("inspect", trunk, "--mtp", 1)
    assert (code, says(err, "--mtp 1: 1 drafts a step asked for, but … announces … MTP layers")) == (2, True)


def test_what_is_no_model_and_too_long_a_context_are_one_line(
    potluck: Potluck, path: Path, tmp_path: Path
) -> None:
    code, _, err = potluck("inspect", path, "--context", 4097)
    assert (code, says(err, "--context 4097: expected at most 4,096 positions, the model's own limit")) == (
        2,
        True,
    )
    (tmp_path / "m.gguf").write_bytes(path.read_bytes()[:-100])
    code, _, err = potluck("inspect", tmp_path / "m.gguf")
    assert (code, says(err, "m.gguf: tensor … ends at byte … truncated")) == (2, True)
    code, _, err = potluck("inspect", "step-3.5-flash")
    assert (code, says(err, "without weights; expected a directory")) == (2, True)


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        (1000, "It fits into this machine's memory."),
        (
            999,
            "99% of the routed experts fit beside the rest. `potluck generate` keeps the experts on disk",
        ),
        (160, "16% of the routed experts fit beside the rest"),
        (159, "not beside all of the 210.0 MB that the process may take"),
        (-50, "not beside all of the 210.0 MB that the process may take"),
        (-51, "not even the head and the smallest cache of experts fit"),
    ],
)
def test_the_verdict_says_what_is_missing(room: int, expected: str) -> None:
    head = (Need("the head's weights", 10**9), Need("a KV cache", 10**8), Need("activations", 10**7))
    beside = sum(need.num_bytes for need in head) + PROCESS_BYTES
    fit = Fit(head, 10**9, 16 * 10**7, FreeMemory(beside + room * 10**6 + LEAST_MARGIN_BYTES, "this machine"))
    assert expected in verdict(fit)
    assert (fit.missing_bytes == 0) == (room == 1000)
    assert verdict(replace(fit, problem="m.gguf: a tensor is missing")).startswith("It does not run: m.gguf")


def set_free(monkeypatch: pytest.MonkeyPatch, usable_bytes: int) -> None:
    memory = psutil.virtual_memory()._replace(available=usable_bytes + LEAST_MARGIN_BYTES)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


@pytest.mark.parametrize("options", [(), ("--kv", "int8"), ("--mtp", "2")], ids=" ".join)
def test_what_fits_to_the_byte_is_what_generate_accepts(
    potluck: Potluck, tmp_path: Path, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inspect also counts the process itself, which runs already when generate looks."""
    path = write_random_gguf(tmp_path / "small.gguf", SMALL, TYPES)

    def inspected(usable_bytes: int) -> tuple[bool, str]:
        set_free(monkeypatch, usable_bytes + PROCESS_BYTES)
        _, out, _ = potluck("inspect", path, "--context", 7, *options)
        made = document(potluck("inspect", path, "--context", 7, *options, "--json"))
        return made["fits"], " ".join(out.split())

    def generated(usable_bytes: int) -> tuple[int, str]:
        set_free(monkeypatch, usable_bytes)
        asked = ("generate", "--model", path, "--token-ids", "5,6,7", "--max-tokens", "4")
        code, _, err = potluck(*asked, *options)
        return code, err

    told = document(potluck("inspect", path, "--context", 7, *options, "--json"))
    needed = told["needed_bytes"] - PROCESS_BYTES
    experts = [run for run in told["types"] if run["part"] == "routed experts"]
    of_layer = [sum(run["bytes"] for run in experts if layer in run["layers"]) for layer in (1, 2)]
    assert of_layer[0] != of_layer[1]
    for usable_bytes, fits, place in ((needed, True, "is mapped into"), (needed - 1, False, "does not fit")):
        code, err = generated(usable_bytes)
        assert (code, place in err) == (0, True)
        assert inspected(usable_bytes)[0] is fits
    # 16 experts of the largest layer: two layers of a kind share its bytes, and a layer has 16 experts.
    expert_bytes = {num_bytes // 16 for num_bytes in (of_layer[0] // 2, of_layer[1])}
    least = needed - told["expert_bytes"] + 16 * max(expert_bytes)
    assert generated(least)[0] == 0
    assert "of the routed experts fit beside the rest" in inspected(least)[1]
    code, err = generated(least - 1)
    assert (code, says(err, "of memory are missing … smallest cache of experts")) == (2, True)
    assert "not beside all of the 210.0 MB that the process may take" in inspected(least - 1)[1]
    assert (
        "not even the head and the smallest cache of experts fit" in inspected(least - 1 - PROCESS_BYTES)[1]
    )


def test_a_file_that_lacks_a_tensor_does_not_fit(potluck: Potluck, tmp_path: Path) -> None:
    directory = write_random_checkpoint(tmp_path / "m", seed=1)
    tensors = load_file(directory / "model.safetensors")
    del tensors["model.layers.1.self_attn.o_proj.weight"]
    save_file(tensors, directory / "model.safetensors")
    made = document(potluck("inspect", directory, "--json"))
    assert (made["fits"], made["missing_bytes"]) == (False, 0)
    code, out, _ = potluck("inspect", directory)
    words = " ".join(out.split())
    assert code == 0
    assert "It does not run:" in words
    assert "model.layers.1.self_attn.o_proj.weight is missing" in words
    code, _, err = potluck("generate", "--model", directory, "--token-ids", "5", "--max-tokens", "1")
    assert (code, made["problem"] in err) == (2, True)


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
