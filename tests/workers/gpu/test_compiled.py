"""What NVRTC makes of the kernels: nothing spilled, and no fused multiply-add that was not asked for."""

from __future__ import annotations

import re

import pytest

from benchmarks.gpu_resources import CAPABILITIES, resources
from workers.gpu import compile as compiling
from workers.gpu.compile import compile_module
from workers.gpu.modules import Module, every_module

MODULES = {module.name: module for module in every_module()}
NEWEST = CAPABILITIES[-1]


def unasked(ptx: str) -> list[str]:
    """Instructions that may round once where the source rounds twice.

    A fused one outside of assembly is the compiler's own (`fma_rn` is assembly). A product, sum or difference
    without a written rounding is one that ptxas may fuse (PTX ISA, 'Floating Point Instructions: mul').
    """
    of_compiler = re.sub(r"// begin inline asm.*?// end inline asm", "", ptx, flags=re.DOTALL)
    return re.findall(
        r"\b(?:(?:fma|mad)\.[\w.]*f(?:32|64)|(?:mul|add|sub)\.(?:ftz\.)?f(?:32|64))\b", of_compiler
    )


def text(module: Module, capability: tuple[int, int]) -> str:
    return compile_module(module, capability, as_text=True).image.decode(errors="replace")


def _holds(name: str, capability: tuple[int, int]) -> None:
    module = MODULES[name]
    spilled = {each.kernel: each.spilled_bytes for each in resources(module, capability)}
    assert spilled == dict.fromkeys(module.kernels, 0)
    assert unasked(text(module, capability)) == []


@pytest.mark.parametrize("name", ["rounding", "grid", "norms", "linear_q8_0"])
def test_some_kernels_spill_nothing_and_fuse_nothing_unasked(name: str) -> None:
    _holds(name, NEWEST)


@pytest.mark.card
@pytest.mark.parametrize("name", MODULES)
def test_no_register_is_spilled_and_nothing_fused_unasked(name: str) -> None:
    _holds(name, NEWEST)


@pytest.mark.long
@pytest.mark.parametrize("capability", CAPABILITIES[:-1], ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_nor_on_older_generations(name: str, capability: tuple[int, int]) -> None:
    _holds(name, capability)


PRODUCT_AND_SUM = "KERNEL probe(const RoundRowsArgs a) { a.scales[0] = a.x[0] * a.x[1] + a.x[2]; }"
INTRINSIC = "KERNEL probe(const RoundRowsArgs a) { a.scales[0] = __fmaf_rn(a.x[0], a.x[1], a.x[2]); }"
ASKED = "KERNEL probe(const RoundRowsArgs a) { a.scales[0] = fma_rn(a.x[0], a.x[1], a.x[2]); }"


@pytest.mark.parametrize(
    ("line", "flags", "found"),
    [
        (PRODUCT_AND_SUM, compiling.FLAGS, 0),
        (PRODUCT_AND_SUM, ("--std=c++17", "--fmad=true"), 1),
        (INTRINSIC, compiling.FLAGS, 1),
        (ASKED, compiling.FLAGS, 0),
    ],
)
def test_a_fused_multiply_add_that_was_not_asked_for_is_found(
    monkeypatch: pytest.MonkeyPatch, line: str, flags: tuple[str, ...], found: int
) -> None:
    probe = Module("probe", "rounding.h", ("probe",), (line,))
    base = Module("base", "rounding.h", ("round_rows_32",))
    monkeypatch.setattr(compiling, "FLAGS", flags)
    assert len(unasked(text(probe, (8, 6)))) - len(unasked(text(base, (8, 6)))) >= found
    if not found:
        assert unasked(text(probe, (8, 6))) == []
