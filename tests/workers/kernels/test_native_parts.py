"""Parts of the compiled library that Python cannot reach alone, by small programs around them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.programs import COMPILER, complaints
from workers import kernels

HERE, SOURCES = Path(__file__).parent, Path(kernels.__file__).parent
# Not optimised: compiling takes longer than running.
FLAGS = ("-O0", "-ffp-contract=off", "-pthread")


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
def test_the_pool_runs_each_item_once_in_busy_and_forked_processes() -> None:
    assert complaints([HERE / "thread_pool.cpp", SOURCES / "thread_pool.cpp"], [SOURCES], *FLAGS) == ""


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.parametrize(
    "with_vnni",
    [
        pytest.param(False, id="avx2"),
        # As `make avx512` does too.
        pytest.param(True, id="vnni spelled out", marks=pytest.mark.long),
    ],
)
def test_any_bits_multiply_as_the_definition_says(with_vnni: bool) -> None:
    if not kernels.use_instruction_set("avx2"):
        pytest.skip("this processor has no AVX2")
    flags = ("-mavx2", "-mfma", "-mf16c", "-fno-math-errno", "-w", *(["-DPOTLUCK_VNNI"] if with_vnni else []))
    assert complaints([HERE / "blocks.cpp"], [SOURCES], *FLAGS, *flags) == ""
