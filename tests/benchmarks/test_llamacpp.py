"""What llama.cpp's benchmarks print is read right, and what is absent or fails is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.llamacpp import LlamaCpp, best_of, passes


def build(folder: Path, script: str) -> LlamaCpp:
    """Programs that do what `script` says."""
    for name in ("llama-bench", "llama-batched-bench"):
        program = folder / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    found = LlamaCpp.find(folder, threads=2)
    assert found is not None
    return found


def test_a_folder_without_the_programs_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMACPP_BIN", raising=False)
    assert LlamaCpp.find(None, 2) is None
    assert LlamaCpp.find(tmp_path, 2) is None
    built = build(tmp_path, "exit 0")
    monkeypatch.setenv("LLAMACPP_BIN", str(tmp_path))
    assert LlamaCpp.find(None, 2) == built


def test_the_better_setting_counts() -> None:
    off = {"flash_attn": 0, "samples_ns": [4e9, 1e9, 2e9]}
    on = {"flash_attn": 1, "samples_ns": [3e9, 3e9, 1e9]}
    assert best_of(json.dumps([off, on])) == pytest.approx(2.0)


def test_passes_are_seconds_by_rows_of_each_first_line(tmp_path: Path) -> None:
    lines = [
        {"pl": 1, "tg": 16, "t_tg": 1.6},
        {"pl": 2, "tg": 16, "t_tg": 2.4},
        {"pl": 1, "tg": 16, "t_tg": 9.0},
    ]
    printed = "".join(f"{json.dumps(line)}\\n" for line in lines)
    found = build(tmp_path, f"printf '{printed}'").pass_s(tmp_path / "m.gguf", (1, 2))
    assert found == passes("\n".join(map(json.dumps, lines))) == pytest.approx({1: 0.1, 2: 0.15})


def test_a_program_that_fails_is_an_error_with_its_last_line(tmp_path: Path) -> None:
    failing = build(tmp_path, "echo no such model >&2; exit 3")
    with pytest.raises(RuntimeError, match="llama-bench ended with 3: no such model"):
        failing.decode_s(tmp_path / "m.gguf", 0)
