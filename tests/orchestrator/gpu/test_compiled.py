"""What NVRTC makes of the head's kernels for real cards."""

from __future__ import annotations

import re

import pytest

from workers.gpu.compile import compile_module
from workers.gpu.modules import every_module

OF_THE_HEAD = [
    module
    for module in every_module()
    if module.name.startswith(("norms", "routing", "kv_rows", "attention", "sampling"))
]


def check(name: str, capability: tuple[int, int]) -> None:
    (module,) = (module for module in OF_THE_HEAD if module.name == name)
    log = compile_module(module, capability).log
    assert {f"'{kernel}'" in log for kernel in module.kernels} == {True}
    spills = [int(n) for n in re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", log)]
    assert spills
    assert not any(spills)


@pytest.mark.card
@pytest.mark.parametrize(
    "name", ["norms", "routing", "kv_rows", "attention_join", "attention_int8_1_2", "sampling"]
)
def test_no_product_is_contracted_or_approximated(name: str) -> None:
    (module,) = (module for module in OF_THE_HEAD if module.name == name)
    text = compile_module(module, (8, 6), as_text=True).image.decode()
    # `mul.f32` may meet an `add.f32` in one rounding; `mul.rn.f32` may not.
    found = re.findall(r"\b(?:fma|mad|mul|add|sub|div|rcp|sqrt)((?:\.[a-z]+)*)\.f(?:32|64)\b", text)
    assert set(found) == {".rn"}


# The ones with most registers; the others are in the long test.
@pytest.mark.card
@pytest.mark.parametrize("capability", [(7, 5), (12, 0)])
@pytest.mark.parametrize("name", ["norms", "routing", "sampling", "attention_join", "attention_bfloat16_4_1"])
def test_kernels_of_the_head_fit_the_registers(name: str, capability: tuple[int, int]) -> None:
    check(name, capability)


@pytest.mark.long
@pytest.mark.parametrize("capability", [(7, 5), (8, 6), (8, 9), (9, 0), (12, 0)])
@pytest.mark.parametrize("name", [module.name for module in OF_THE_HEAD])
def test_all_kernels_of_the_head_fit_the_registers(name: str, capability: tuple[int, int]) -> None:
    check(name, capability)
