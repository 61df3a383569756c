"""What each GPU kernel takes of a multiprocessor, from the compiler's own account. No card is needed.

    python -m benchmarks.gpu_resources [--capabilities 7.5,8.6,8.9,9.0,12.0] [--modules linear_q4_k,experts]

A row is a kernel, a column a generation of cards: registers of a thread / bytes of shared memory of a thread
block / bytes of registers spilled to memory.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass

from workers.gpu.compile import compile_module
from workers.gpu.modules import Module, every_module

CAPABILITIES = ((7, 5), (8, 6), (8, 9), (9, 0), (12, 0))
"""A generation of cards each: Turing, Ampere, Ada, Hopper, Blackwell."""

_KERNEL = re.compile(
    r"entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers([^\n]*)",
    re.DOTALL,
)
_SHARED = re.compile(r"(\d+) bytes smem")


@dataclass(frozen=True, slots=True)
class Resources:
    """Of one kernel. `spilled_bytes`: written to and read from memory by a thread for want of registers."""

    kernel: str
    registers: int
    shared_bytes: int
    spilled_bytes: int


def resources(module: Module, capability: tuple[int, int]) -> tuple[Resources, ...]:
    """Of each of a module's kernels on one generation, in the module's order; compiles it."""
    found = {}
    for kernel, stores, loads, registers, rest in _KERNEL.findall(compile_module(module, capability).log):
        shared = _SHARED.search(rest)
        shared_bytes = int(shared[1]) if shared else 0
        found[kernel] = Resources(kernel, int(registers), shared_bytes, int(stores) + int(loads))
    return tuple(found[kernel] for kernel in module.kernels)


def table(modules: Sequence[Module], capabilities: Sequence[tuple[int, int]]) -> str:
    """In Markdown."""
    head = ["kernel", *(f"{major}.{minor}" for major, minor in capabilities)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for module in modules:
        columns = [resources(module, capability) for capability in capabilities]
        for row in zip(*columns, strict=True):
            cells = (f"{each.registers} / {each.shared_bytes} / {each.spilled_bytes}" for each in row)
            lines.append(f"| {' | '.join((f'`{row[0].kernel}`', *cells))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--capabilities", default=",".join(f"{a}.{b}" for a, b in CAPABILITIES))
    parser.add_argument("--modules", default=",".join(module.name for module in every_module()))
    asked = parser.parse_args()
    wanted = asked.modules.split(",")
    modules = [module for module in every_module() if module.name in wanted]
    capabilities = [tuple(map(int, each.split("."))) for each in asked.capabilities.split(",")]
    print(table(modules, [(major, minor) for major, minor in capabilities]))


if __name__ == "__main__":
    main()
