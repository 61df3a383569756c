"""Builds the CUDA driver whose card is this machine's CPU, once for each state of its sources."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from workers.gpu.modules import SOURCES, Module, every_module

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# A new clone compiles all kernels, which takes longer than running them; -O2 would take half as long again.
COMPILE = "-std=c++17 -O1 -g0 -fPIC -pthread -ffp-contract=off -fno-math-errno -fvisibility=hidden -w"
LINK = ("-shared", "-pthread", "-ldl", "-Wl,-soname,libcuda.so.1")


def build(folder: Path = ROOT / "build" / "cuda_on_cpu", flags: tuple[str, ...] = ()) -> Path:
    """The folder with `libcuda.so.1`: put it first in LD_LIBRARY_PATH of a process that is to have a card."""
    units = {path.stem: path.read_text() for path in sorted(HERE.glob("*.cpp"))} | _kernel_units()
    sources = [*sorted(HERE.glob("*.h")), *sorted(SOURCES.glob("*.h"))]
    told = repr((units, COMPILE, LINK, flags, [path.read_bytes() for path in sources]))
    place = folder / _hash(told.encode())
    library = place / "libcuda.so.1"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if library.exists():
            return place
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            objects = list(pool.map(partial(_object, folder, (*_fast(), *flags)), units, units.values()))
        place.mkdir(exist_ok=True)
        made = place / "made"
        _run([*map(str, objects), *flags, *LINK, "-o", str(made)])
        made.rename(library)
    return place


def _kernel_units() -> dict[str, str]:
    """C++ for each header's kernels, in a namespace of its own, and for the table of all of them."""
    by_header: dict[str, list[Module]] = {}
    for module in every_module():
        by_header.setdefault(module.header, []).append(module)
    units = {f"of_{Path(header).stem}": _unit(header, modules) for header, modules in by_header.items()}
    lines = ['#include "blocks.h"', "#include <cstring>", "#include <initializer_list>"]
    lines += [f"extern const Kernel {unit}[];" for unit in units]
    lines.append("const Kernel* find_kernel(const char* name) {")
    lines.append(f"  for (const Kernel* kernel : {{{', '.join(units)}}})")
    lines.append("    for (; kernel->name; ++kernel)")
    lines.append("      if (std::strcmp(kernel->name, name) == 0) return kernel;")
    lines += ["  return nullptr;", "}", ""]
    return units | {"kernel_table": "\n".join(lines)}


def _unit(header: str, modules: Sequence[Module]) -> str:
    names = [name for module in modules for name in module.kernels]
    lines = ['#include "blocks.h"', '#include "cuda_on_cpu.h"', "namespace {"]
    lines += [module.source for module in modules]
    lines += [
        "template <class F> struct ArgumentsOf;",
        "template <class Args> struct ArgumentsOf<void (*)(Args)> { using Type = Args; };",
        "template <class Args, void (*OF)(Args)> void call(const void* a) { OF(*(const Args*)a); }",
        "}",
        f"extern const Kernel of_{Path(header).stem}[] = {{",
    ]
    for name in names:
        args = f"ArgumentsOf<decltype(&{name})>::Type"
        lines.append(f'  {{"{name}", &call<{args}, &{name}>, sizeof({args})}},')
    return "\n".join([*lines, "  {nullptr, nullptr, 0},", "};", ""])


def _object(folder: Path, flags: Sequence[str], name: str, text: str) -> Path:
    """Compiled, or as it was compiled before from the same text and headers."""
    command = [*COMPILE.split(), *flags, f"-I{HERE}", f"-I{SOURCES}", "-x", "c++"]
    source = text.encode()
    whole = subprocess.run([_compiler(), *command, "-E", "-P", "-"], input=source, check=True, stdout=-1)
    made = folder / f"{name}-{_hash(repr(command).encode() + whole.stdout)}.o"
    if not made.exists():
        making = made.with_suffix(".making")
        _run([*command, "-c", "-", "-o", str(making)], source)
        making.rename(made)
    return made


def _run(arguments: Sequence[str], text: bytes | None = None) -> None:
    subprocess.run([_compiler(), *arguments], input=text, check=True)


def _compiler() -> str:
    return os.environ.get("CXX", "c++")


def _hash(told: bytes) -> str:
    return hashlib.sha256(told).hexdigest()[:16]


def _fast() -> tuple[str, ...]:
    """Fused multiply-adds as instructions where the CPU has them; the bits are the same."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ()
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    return ("-mfma", "-mf16c") if {"fma", "f16c"} <= set(flags) else ()


if __name__ == "__main__":
    sys.stdout.write(f"{build()}\n")
