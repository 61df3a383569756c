"""Builds the CUDA driver whose card is this machine's CPU, once for each state of its sources."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from workers.gpu.modules import SOURCES, every_module

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
COMPILE = "-std=c++17 -O2 -g0 -fPIC -shared -pthread -ffp-contract=off -fno-math-errno -fvisibility=hidden -w"
LINK = ("-ldl", "-Wl,-soname,libcuda.so.1")


def kernel_table() -> str:
    """C++ with all kernels of all modules and a table of them."""
    modules = list(every_module())
    names = [name for module in modules for name in module.kernels]
    lines = ['#include "blocks.h"', "#include <cstring>", *(module.source for module in modules)]
    lines += [
        "template <class Args> struct Call {",
        "  template <void (*KERNEL_OF)(Args)> static void run(const void* a) { KERNEL_OF(*(const Args*)a); }",
        "};",
        "template <class Args> size_t size_of(void (*)(Args)) { return sizeof(Args); }",
        "template <class F> struct ArgumentsOf;",
        "template <class Args> struct ArgumentsOf<void (*)(Args)> { using Type = Args; };",
        "static const Kernel KERNELS[] = {",
        *(
            f'  {{"{name}", &Call<ArgumentsOf<decltype(&{name})>::Type>::run<&{name}>, size_of(&{name})}},'
            for name in names
        ),
        "};",
        "const Kernel* find_kernel(const char* name) {",
        "  for (const Kernel& kernel : KERNELS) if (std::strcmp(kernel.name, name) == 0) return &kernel;",
        "  return nullptr;",
        "}",
        "",
    ]
    return "\n".join(lines)


def build(folder: Path = ROOT / "build" / "cuda_on_cpu", flags: tuple[str, ...] = ()) -> Path:
    """The folder with `libcuda.so.1`: put it first in LD_LIBRARY_PATH of a process that is to have a card."""
    table = kernel_table()
    sources = [*sorted(HERE.glob("*.h")), *sorted(HERE.glob("*.cpp")), *sorted(SOURCES.glob("*.h"))]
    told = repr((table, COMPILE, LINK, flags, [path.read_bytes() for path in sources]))
    place = folder / hashlib.sha256(told.encode()).hexdigest()[:16]
    library = place / "libcuda.so.1"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if library.exists():
            return place
        making = folder / f"making-{os.getpid()}"
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir()
        (making / "kernel_table.cpp").write_text(table)
        compiler = os.environ.get("CXX", "c++")
        fast = ("-mfma", "-mf16c") if "fma" in _cpu_flags() else ()
        units = [making / "kernel_table.cpp", *sorted(HERE.glob("*.cpp"))]
        command = [compiler, *COMPILE.split(), *flags, *fast, f"-I{HERE}", f"-I{SOURCES}", *map(str, units)]
        subprocess.run([*command, *LINK, "-o", str(making / "libcuda.so.1")], check=True)
        making.rename(place)
    return place


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


if __name__ == "__main__":
    sys.stdout.write(f"{build()}\n")
