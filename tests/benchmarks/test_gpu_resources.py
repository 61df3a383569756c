"""What the compiler says of kernels is read right, and what must not be in their code is found."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.gpu.machine_code import arithmetic_of, find_nvdisasm, inspect_module, resources_in, unasked
from benchmarks.gpu_resources import CAPABILITIES
from placement.errors import InputError
from workers.gpu.compile import compile_module
from workers.gpu.modules import Module, module_of

LOG = """\
ptxas info    : 12 bytes gmem
ptxas info    : Compiling entry function 'other' for 'sm_86'
ptxas info    : Function properties for other
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 23 registers, used 0 barriers, 392 bytes cmem[0]
ptxas info    : Compiling entry function 'mine' for 'sm_86'
ptxas info    : Function properties for mine
    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 16392 bytes smem, 536 bytes cmem[0]
"""


def test_a_kernels_needs_are_read_from_the_compilers_log() -> None:
    (found,) = resources_in(LOG, Module("m", "m.h", ("mine",)))
    assert (found.registers, found.shared_bytes, found.spilled_bytes, found.stack_bytes) == (
        40,
        16392,
        12,
        16,
    )
    other, mine = resources_in(LOG, Module("m", "m.h", ("other", "mine")))
    assert (other.registers, other.shared_bytes, other.spilled_bytes) == (23, 0, 0)
    assert mine == found
    with pytest.raises(ValueError, match="nothing of third"):
        resources_in(LOG, Module("m", "m.h", ("third",)))


def test_roundings_that_are_left_open_and_flushed_numbers_are_found() -> None:
    asked = "\t// begin inline asm\n\tfma.rn.f32 %f1, %f2, %f3, %f4;\n\t// end inline asm\n"
    assert unasked(asked + "\tmul.rn.f32 %f5, %f6, %f7;\n\tadd.rn.f32 %f1, %f2, %f3;\n") == ()
    assert unasked("\t@%p1 mul.f32 %f5, %f6, %f7;\n\tadd.f64 %d1, %d2, %d3;\n") == ("mul.f32", "add.f64")
    assert unasked("\tfma.rn.f32 %f1, %f2, %f3, %f4;\n") == ("fma.rn.f32",)
    assert unasked("\tdiv.rn.ftz.f32 %f1, %f2, %f3;\n") == ("div.rn.ftz.f32",)


def test_machine_code_must_have_the_multiply_adds_that_were_asked_for() -> None:
    ptx = "fma.rn.f32 %f1, %f2, %f3, %f4;\nmul.rn.f32 %f1, %f2, %f3;\n"
    same = "  FFMA R0, R1, R2, R3 ;\n  FMUL R0, R1, R2 ;\n  FFMA.RZ R0, R1, R2, R3 ;\n"
    assert arithmetic_of(ptx, same).is_equal is True
    contracted = arithmetic_of(ptx, same.replace("FMUL", "FFMA"))
    assert (contracted.is_equal, contracted.is_contracted) == (False, True)
    copied = arithmetic_of(ptx, 2 * same)
    assert (copied.is_equal, copied.is_contracted) == (False, False)
    for unknown in (arithmetic_of(ptx, None), arithmetic_of(ptx + "div.rn.f32 %f1, %f2, %f3;\n", same)):
        assert (unknown.is_equal, unknown.is_contracted) == (None, False)


def test_a_module_is_compiled_and_counted() -> None:
    module = module_of("norm_rows")
    needs, arithmetic = inspect_module(module, CAPABILITIES[-1], find_nvdisasm())
    assert [each.kernel for each in needs] == list(module.kernels)
    # Other kernels of the same header are in the log, too.
    log = compile_module(module, CAPABILITIES[-1]).log.partition("'norm_rows' for")[2]
    assert needs[0].registers == int(re.findall(r"Used (\d+) registers", log)[0])
    assert arithmetic.asked_mul > 0
    assert arithmetic.unasked == ()


def test_a_disassembler_that_is_not_there_is_told() -> None:
    with pytest.raises(InputError, match="no file"):
        find_nvdisasm(Path("nowhere/nvdisasm"))
