"""What a compiler made of kernels: registers, memory, spills, and which multiply-adds are in the code."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from placement.errors import InputError
from workers.gpu.compile import compile_module
from workers.gpu.modules import Module

_KERNEL = re.compile(r"Compiling entry function '(\w+)'")
_MEMORY = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")
_ASSEMBLY = re.compile(r"// begin inline asm.*?// end inline asm", re.DOTALL)
_UNASKED = re.compile(
    r"\b(?:(?:fma|mad)\.[\w.]*f(?:32|64)|(?:mul|add|sub)\.(?:ftz\.|sat\.)*f(?:32|64)|\w[\w.]*\.ftz\b[\w.]*)"
)


@dataclass(frozen=True, slots=True)
class Resources:
    """Of one kernel on one generation of cards.

    Attributes:
        registers: of a thread.
        shared_bytes: of a thread block.
        spilled_bytes: written to and read from memory by a thread for want of registers.
        stack_bytes: of a thread's memory besides, such as arrays that are indexed by what is computed.
    """

    kernel: str
    registers: int
    shared_bytes: int
    spilled_bytes: int
    stack_bytes: int


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """Instructions on float32 of one module's code.

    Attributes:
        asked_fma, asked_mul: in PTX, as the source has them.
        made_fma, made_mul: in machine code; None without nvdisasm.
        divides: whether there are quotients or roots, which machine code computes with more of both.
        unasked: see `unasked`.
    """

    asked_fma: int
    asked_mul: int
    made_fma: int | None
    made_mul: int | None
    divides: bool
    unasked: tuple[str, ...]

    @property
    def is_equal(self) -> bool | None:
        """Whether machine code has the multiply-adds and products of PTX; None where that cannot be told."""
        if self.made_fma is None or self.made_mul is None or self.divides:
            return None
        return (self.made_fma, self.made_mul) == (self.asked_fma, self.asked_mul)

    @property
    def is_contracted(self) -> bool:
        """Whether products are gone that multiply-adds came for. More of both are copies of a loop's body."""
        if self.made_fma is None or self.made_mul is None or self.divides:
            return False
        return self.made_mul < self.asked_mul and self.made_fma > self.asked_fma


def resources(module: Module, capability: tuple[int, int]) -> tuple[Resources, ...]:
    """Of each of a module's kernels on one generation, in the module's order; compiles it."""
    return resources_in(compile_module(module, capability).log, module)


def resources_in(log: str, module: Module) -> tuple[Resources, ...]:
    """By the compiler's account.

    Raises:
        ValueError: it tells nothing of a kernel.
    """
    found = {}
    for name, told in zip(_KERNEL.findall(log), _KERNEL.split(log)[2::2], strict=True):
        memory, registers, shared = _MEMORY.search(told), _REGISTERS.search(told), _SHARED.search(told)
        if memory is None or registers is None:
            raise ValueError(f"the compiler says nothing of the registers of {name}: {told!r}")
        stack, stores, loads = map(int, memory.groups())
        shared_bytes = int(shared[1]) if shared else 0
        found[name] = Resources(name, int(registers[1]), shared_bytes, stores + loads, stack)
    missing = [name for name in module.kernels if name not in found]
    if missing:
        raise ValueError(f"the compiler says nothing of {missing[0]} in {module.name}")
    return tuple(found[name] for name in module.kernels)


def unasked(ptx: str) -> tuple[str, ...]:
    """Instructions that may round once where the source rounds twice, or that flush small numbers to zero.

    A fused one outside of assembly is the compiler's own (`fma_rn` is assembly). A product, sum or difference
    without a written rounding is one that ptxas may fuse (PTX ISA, 'Floating Point Instructions: mul').
    """
    return tuple(_UNASKED.findall(_ASSEMBLY.sub("", ptx)))


def arithmetic_of(ptx: str, sass: str | None) -> Arithmetic:
    """Count in a module's PTX and, where it is there, in its disassembled machine code."""
    made_fma = made_mul = None
    if sass is not None:
        made_fma, made_mul = _count(r"\bFFMA\b(?!\.R)", sass), _count(r"\bFMUL\b", sass)
    return Arithmetic(
        _count(r"\bfma\.rn\.f32\s", ptx),
        _count(r"\bmul\.rn\.f32\s", ptx),
        made_fma,
        made_mul,
        bool(_count(r"\b(?:div|sqrt|rcp)\.rn\.f32\s", ptx)),
        unasked(ptx),
    )


def inspect_module(
    module: Module, capability: tuple[int, int], nvdisasm: Path | None
) -> tuple[tuple[Resources, ...], Arithmetic]:
    """Compile a module now, for one generation of cards, twice: to machine code and to PTX."""
    code = compile_module(module, capability)
    ptx = compile_module(module, capability, as_text=True).image.decode(errors="replace")
    sass = None if nvdisasm is None else _disassembled(code.image, nvdisasm)
    return resources_in(code.log, module), arithmetic_of(ptx, sass)


def find_nvdisasm(given: Path | None = None) -> Path | None:
    """NVIDIA's disassembler: of the package nvidia-cuda-nvdisasm, of a toolkit, or `given`.

    Raises:
        InputError: there is none at `given`.
    """
    if given is not None:
        if not given.is_file():
            raise InputError(f"--nvdisasm {given}: expected the program nvdisasm, found no file")
        return given
    package = importlib.util.find_spec("nvidia")
    for folder in [] if package is None else package.submodule_search_locations or []:
        for found in sorted(Path(folder).glob("*/bin/nvdisasm")):
            return found
    installed = shutil.which("nvdisasm")
    return None if installed is None else Path(installed)


def _disassembled(image: bytes, nvdisasm: Path) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(image)
        file.flush()
        command = [str(nvdisasm), "-c", file.name]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def _count(pattern: str, text: str) -> int:
    return len(re.findall(pattern, text))
