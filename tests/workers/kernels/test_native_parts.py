"""Parts of the compiled library that Python cannot reach alone, by small programs around them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from workers import kernels

HERE, SOURCES = Path(__file__).parent, Path(kernels.__file__).parent
COMPILER = shutil.which(os.environ.get("CXX", "c++"))


def complaints(folder: Path, program: str, *arguments: str) -> str:
    """What a program of this folder prints after it was compiled."""
    # Not optimised: compiling takes longer than running.
    assert COMPILER is not None
    built = folder / "program"
    command = [COMPILER, "-std=c++17", "-O0", "-ffp-contract=off", "-pthread", f"-I{SOURCES}", *arguments]
    subprocess.run([*command, str(HERE / program), "-o", str(built)], check=True, timeout=600)
    done = subprocess.run([str(built)], capture_output=True, text=True, timeout=300)
    return done.stdout + done.stderr if done.returncode else ""


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
def test_the_pool_runs_each_item_once_in_busy_and_forked_processes(tmp_path: Path) -> None:
    assert complaints(tmp_path, "thread_pool.cpp", str(SOURCES / "thread_pool.cpp")) == ""


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.parametrize(
    "with_vnni",
    [
        pytest.param(False, id="avx2"),
        # As `make avx512` does too.
        pytest.param(True, id="vnni spelled out", marks=pytest.mark.long),
    ],
)
def test_any_bits_multiply_as_the_definition_says(tmp_path: Path, with_vnni: bool) -> None:
    if not kernels.use_instruction_set("avx2"):
        pytest.skip("this processor has no AVX2")
    flags = ("-mavx2", "-mfma", "-mf16c", "-fno-math-errno", "-w", *(["-DPOTLUCK_VNNI"] if with_vnni else []))
    assert complaints(tmp_path, "blocks.cpp", *flags) == ""
