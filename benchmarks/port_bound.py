"""What the processor's multipliers alone allow, so that a slow kernel cannot pass for a bound.

Every type's products with 8-bit activations go by chunks of 256 weights (workers/kernels/blocks_256.h). A
chunk and a row take eight multiplications of 8-bit numbers, 32 at a time, then some that widen and scale
their sums, and some of the row's own sums with offsets or minimums. How many of them this machine does in a
second is measured with a loop of nothing else.
"""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from benchmarks.timing import best_s

_SOURCE = Path(__file__).with_name("multiply_rate.c")
_TURNS, _IN_TURN = 50_000, 12

# 256-bit instructions of a chunk and a row: that scale sums of products, and that multiply the row's sums.
# Minimums of q4_k and q5_k are taken for eight chunks at once. Counted by hand in blocks_256.h,
# small_blocks_256.h and panels.h; nothing ties them to these files, so count again where those change.
_SCALINGS: Mapping[str, tuple[int, float]] = {
    "q8_0": (8, 0),
    "q6_k": (4, 1),
    "q5_k": (2, 0.5),
    "q4_k": (2, 0.5),
    "q3_k": (4, 1),
    "q2_k": (4, 1),
    "q5_1": (2, 1),
    "q5_0": (2, 1),
    "q4_1": (2, 1),
    "q4_0": (2, 1),
    "iq4_nl": (8, 0),
    "iq4_xs": (8, 0),
    "iq3_s": (8, 1),
    "iq3_xxs": (8, 1),
    "iq2_s": (8, 1),
    "iq2_xs": (8, 1),
    "iq2_xxs": (8, 1),
    "mxfp4": (8, 0),
}
# With vpdpbusd sums are 32 bits wide at once: q8_0 has nothing left to widen. Other types keep the AVX2 form.
_SCALINGS_VNNI: Mapping[str, tuple[int, float]] = {
    "q8_0": (0, 0),
    "q6_k": (4, 1),
    "q5_k": (2, 0.5),
    "q4_k": (2, 0.5),
    "q3_k": (4, 1),
    "iq4_xs": (8, 0),
}


def multiplications(form: str, instruction_set: str) -> Mapping[str, float]:
    """256-bit multiply instructions of 256 weights and a row; none where no such instructions are used."""
    if instruction_set == "avx512vnni" and form in _SCALINGS_VNNI:
        scalings, sums = _SCALINGS_VNNI[form]
        return {"vpdpbusd": 8, "vpmulld": scalings, "vpmaddwd": sums}
    if instruction_set in ("avx2", "avx512", "avx512vnni"):
        scalings, sums = _SCALINGS[form]
        return {"vpmaddubsw": 8, "vpmaddwd": scalings + sums}
    return {}


def multiply_rates(instruction_set: str) -> Mapping[str, float]:
    """256-bit multiply instructions a second of one thread, by name; none without a C compiler `cc`."""
    wanted = {name for form in _SCALINGS for name in multiplications(form, instruction_set)}
    compiler = shutil.which("cc")
    if compiler is None or not wanted or platform.machine() not in ("x86_64", "AMD64"):
        return {}
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "multiply_rate.so"
        subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, _SOURCE], check=True)
        loops = ctypes.CDLL(str(library))
        turns = ctypes.c_long(_TURNS)
        return {name: _TURNS * _IN_TURN / best_s(partial(loops[name], turns)) for name in sorted(wanted)}


def least_s(form: str, instruction_set: str, rates: Mapping[str, float]) -> float:
    """Seconds that 256 weights and one row keep a thread's multipliers busy; 0 where that is not known."""
    counts = multiplications(form, instruction_set)
    return sum(count / rates[name] for name, count in counts.items()) if rates else 0.0
