"""Compile all GPU kernels for a card into the user's cache, with all cores at once.

python -m benchmarks.gpu.compile_all [--device cuda]
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from placement.errors import PotluckError
from workers.gpu.compile import compiled
from workers.gpu.modules import Module, every_module
from workers.gpu.opening import open_device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda")
    asked = parser.parse_args()
    began, modules = time.perf_counter(), list(every_module())
    try:
        capability = open_device(asked.device).facts.capability
        with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            sizes = list(pool.map(partial(_compiled_bytes, capability), modules))
    except PotluckError as error:
        sys.exit(str(error))
    took_s = time.perf_counter() - began
    print(f"{len(modules)} modules, {sum(sizes) / 1e6:.1f} MB of machine code, {took_s:.0f} s")


def _compiled_bytes(capability: tuple[int, int], module: Module) -> int:
    return len(compiled(module, capability))


if __name__ == "__main__":
    main()
