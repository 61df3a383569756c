"""What the GPU kernels need on each generation of cards, by their compiler's word. Needs no card.

    python -m benchmarks.gpu_resources [--capabilities 7.5,8.6] [--modules linear,tiles] [--kernels]
        [--nvdisasm PATH]

Of each module and generation: registers of a thread and shared memory of a block at most, and spills, each
named; with `--kernels` a line of each kernel: registers / bytes of shared memory / bytes spilled.

Then the arithmetic: multiply-adds of the compiler's own making, and sums and products that leave it to the
assembler how they are rounded, of which it may make some. There must be none. Where nvdisasm is found
(`pip install nvidia-cuda-nvdisasm`), machine code is counted too: no products may have become multiply-adds.
Where PTX divides or takes roots, machine code computes those with more of both, and is not compared.

All modules for six generations take about 15 minutes of one core; all cores are used. The exit code is 1
where something spills or may be contracted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product, repeat
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.gpu.machine_code import Arithmetic, Resources, find_nvdisasm, inspect_module, resources
from benchmarks.gpu.markdown import table
from placement.errors import InputError, PotluckError
from workers.gpu.compile import version
from workers.gpu.modules import Module, every_module

__all__ = ("CAPABILITIES", "resources")

CAPABILITIES = ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (12, 0))
"""A generation of cards each: Turing, Ampere's large and small ones, Ada, Hopper, Blackwell."""
_ALL = ",".join(f"{a}.{b}" for a, b in CAPABILITIES)


def main(
    capabilities: Annotated[str, typer.Option(help="Generations of cards, with commas.")] = _ALL,
    modules: Annotated[str, typer.Option(help="How modules' names begin, with commas; all.")] = "",
    kernels: Annotated[bool, typer.Option("--kernels", help="A line of each kernel.")] = False,
    nvdisasm: Annotated[Path | None, typer.Option(help="The disassembler; found by itself.")] = None,
) -> None:
    """Print two tables."""
    try:
        generations = tuple(_generation(name) for name in capabilities.split(","))
        chosen = [m for m in every_module() if m.name.startswith(tuple(modules.split(",")))]
        found = dict(_inspected(chosen, generations, find_nvdisasm(nvdisasm)))
    except PotluckError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from error
    compiler = ".".join(map(str, version()))
    print(f"{len(chosen)} modules, NVRTC {compiler}; registers of a thread / shared memory of a block")
    print("in bytes / bytes spilled:\n" if kernels else "in KB, the most of each module's kernels:\n")
    lines = list(_kernels(found, generations) if kernels else _worst(found, generations))
    print(table(("kernel" if kernels else "module", *(f"{a}.{b}" for a, b in generations)), lines))
    faults = list(_faults(found))
    print("\n".join(["", *_summary(found), *faults]))
    raise typer.Exit(1 if faults else 0)


_Found = dict[tuple[str, tuple[int, int]], tuple[tuple[Resources, ...], Arithmetic]]


def _generation(name: str) -> tuple[int, int]:
    major, _, minor = name.partition(".")
    if not (major.isdecimal() and minor.isdecimal()):
        raise InputError(f"--capabilities {name!r}: expected such as 8.6, several with commas")
    return int(major), int(minor)


def _inspected(
    modules: Sequence[Module], generations: Sequence[tuple[int, int]], nvdisasm: Path | None
) -> Iterator[tuple[tuple[str, tuple[int, int]], tuple[tuple[Resources, ...], Arithmetic]]]:
    """All of them, by as many processes as there are cores."""
    wanted = list(product(modules, generations))
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        found = pool.map(inspect_module, *zip(*wanted, strict=True), repeat(nvdisasm), chunksize=4)
        for done, ((module, generation), of_module) in enumerate(zip(wanted, found, strict=True), 1):
            if sys.stderr.isatty():
                print(f"\r{done} of {len(wanted)}", end="", file=sys.stderr, flush=True)
            yield (module.name, generation), of_module
    if sys.stderr.isatty():
        print("\r", end="", file=sys.stderr)


def _worst(found: _Found, generations: Sequence[tuple[int, int]]) -> Iterator[list[str]]:
    """A line for each module."""
    for name in dict.fromkeys(name for name, _ in found):
        kernels = [found[name, generation][0] for generation in generations]
        yield [name, *(_needs(each) for each in kernels)]


def _kernels(found: _Found, generations: Sequence[tuple[int, int]]) -> Iterator[list[str]]:
    """A line for each kernel."""
    for name in dict.fromkeys(name for name, _ in found):
        for each in zip(*(found[name, generation][0] for generation in generations), strict=True):
            yield [
                f"`{each[0].kernel}`",
                *(f"{k.registers} / {k.shared_bytes} / {k.spilled_bytes}" for k in each),
            ]


def _needs(kernels: Sequence[Resources]) -> str:
    registers = max(kernel.registers for kernel in kernels)
    shared = max(kernel.shared_bytes for kernel in kernels)
    spilled = ", spills" if any(kernel.spilled_bytes or kernel.stack_bytes for kernel in kernels) else ""
    return f"{registers} / {shared / 1024:.1f}{spilled}"


def _summary(found: _Found) -> list[str]:
    each = [arithmetic for _, arithmetic in found.values()]
    spilled = sum(1 for kernels, _ in found.values() for kernel in kernels if kernel.spilled_bytes)
    kernels = sum(len(kernels) for kernels, _ in found.values())
    lines = [
        f"Of {kernels} kernels and generations {spilled} spill.",
        f"PTX: {sum(one.asked_fma for one in each)} multiply-adds; others than asked for, or roundings that "
        f"are left open: {sum(len(one.unasked) for one in each)}.",
    ]
    compared = [one for one in each if one.is_equal is not None]
    if not compared:
        return [*lines, "Machine code was not counted."]
    equal = sum(one.is_equal is True for one in compared)
    contracted = sum(one.is_contracted for one in compared)
    return [
        *lines,
        f"Machine code: {equal} of {len(compared)} have exactly the multiply-adds and products of their PTX, "
        f"{len(compared) - equal - contracted} more of them, in copies of loops; {contracted} have products "
        f"contracted. {len(each) - len(compared)} divide or take roots and were not compared.",
    ]


def _faults(found: _Found) -> Iterator[str]:
    """What must not be, by name."""
    for (name, (major, minor)), (kernels, arithmetic) in found.items():
        where = f"on {major}.{minor}"
        for kernel in kernels:
            if kernel.spilled_bytes or kernel.stack_bytes:
                yield (
                    f"- {kernel.kernel} {where}: {kernel.spilled_bytes} bytes spilled, {kernel.stack_bytes} "
                    f"of stack, {kernel.registers} registers"
                )
        if arithmetic.unasked:
            yield f"- {name} {where}: {', '.join(sorted(set(arithmetic.unasked)))} in PTX"
        if arithmetic.is_contracted:
            yield (
                f"- {name} {where}: machine code has {arithmetic.made_fma} multiply-adds and "
                f"{arithmetic.made_mul} products, PTX {arithmetic.asked_fma} and {arithmetic.asked_mul}"
            )


if __name__ == "__main__":
    typer.run(main)
