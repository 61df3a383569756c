"""Structures that Python hands to kernels lie in memory as the kernels' headers declare them."""

from __future__ import annotations

import ctypes
import importlib
import pkgutil
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import orchestrator.gpu
import workers.gpu
import workers.kernels
from orchestrator.row_choice import RowChoiceArgs
from tests.cuda_on_cpu.build import HERE as ON_CPU
from tests.programs import COMPILER

OF_CPU = Path(workers.kernels.__file__).parent
OF_CARDS = OF_CPU / "gpu"
OTHER_NAMES = {
    "ExpertRowsArgs": {"num_rows": "T", "hidden_size": "H", "top_k": "k"},
    "ExpertMatricesArgs": {"num_experts": "E"},
    # A word of Python.
    "WidenArgs": {"source": "from"},
}
"""Fields of Python's structures that headers call otherwise."""
IN_NAMESPACES = {"RowPlaces": "kv::RowPlaces"}


def structures() -> Iterator[type[ctypes.Structure]]:
    """All of the packages whose code calls kernels."""
    yield RowChoiceArgs
    for package in (workers.kernels, workers.gpu, orchestrator.gpu):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("._native"):
                found = vars(importlib.import_module(module.name)).values()
                yield from (
                    each
                    for each in found
                    if isinstance(each, type)
                    and issubclass(each, ctypes.Structure)
                    and each.__module__ == module.name
                )


def declared(kind: type[ctypes.Structure]) -> tuple[Path, str]:
    """The header that declares it, and its name there: with or without `Args`."""
    folder = OF_CPU if kind.__module__.startswith("workers.kernels.") else OF_CARDS
    name = kind.__name__.removeprefix("_")
    for spelled in (name, name.removesuffix("Args")):
        for header in sorted(folder.glob("*.h")):
            if re.search(rf"^struct {spelled} {{", header.read_text(), re.MULTILINE):
                return header, IN_NAMESPACES.get(spelled, spelled)
    raise AssertionError(f"no header in {folder} declares {name}")


def complaints(kind: type[ctypes.Structure], header: Path, name: str) -> str:
    """What the compiler says of a field that has another place or size there."""
    same = [f"sizeof({name}) == {ctypes.sizeof(kind)}"]
    for field, *_ in kind._fields_:
        at = getattr(kind, field)
        field = OTHER_NAMES.get(kind.__name__, {}).get(field, field)
        same += [f"offsetof({name}, {field}) == {at.offset}", f"sizeof({name}::{field}) == {at.size}"]
    before = '#include "cuda_on_cpu.h"\n' if header.parent == OF_CARDS else ""
    text = f'#include <cstddef>\n{before}#include "{header.name}"\n'
    text += "".join(f'static_assert({each}, "not so: {each}");\n' for each in same)
    command = [str(COMPILER), "-std=c++17", "-w", f"-I{ON_CPU}", f"-I{header.parent}", "-fsyntax-only"]
    done = subprocess.run(
        [*command, "-x", "c++", "-"], input=text, capture_output=True, text=True, timeout=300
    )
    return done.stderr if done.returncode else ""


needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")


@needs_compiler
@pytest.mark.parametrize("kind", list(structures()), ids=lambda kind: kind.__name__)
def test_every_field_is_where_the_kernels_look_for_it(kind: type[ctypes.Structure]) -> None:
    assert complaints(kind, *declared(kind)) == ""


@needs_compiler
def test_a_field_of_another_size_or_place_or_name_is_found() -> None:
    header = OF_CARDS / "grouping.h"
    (right,) = (kind for kind in structures() if kind.__name__ == "SetSlotsArgs")
    assert complaints(right, header, "SetSlotsArgs") == ""
    first, *others = right._fields_
    for fields in (
        others,
        [*others, first],
        [(first[0], ctypes.c_int16), *others],
        [("x", first[1]), *others],
    ):
        wrong = type("Wrong", (ctypes.Structure,), {"_fields_": fields})
        assert complaints(wrong, header, "SetSlotsArgs") != ""
