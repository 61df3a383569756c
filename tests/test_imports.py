"""Packages import in one direction, and light ones stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# orchestrator -> workers -> transport; everything may use placement, which uses none of them.
FORBIDDEN = {
    "placement": {"orchestrator", "workers", "transport", "torch", "ray", "zmq", "msgpack"},
    "transport": {"orchestrator", "workers", "torch", "ray"},
    "workers": {"orchestrator"},
    "orchestrator": set[str](),
}


def modules(package: str) -> Iterator[tuple[Path, str]]:
    """Source file and dotted name of every module in `package`."""
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield path, ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_packages(path: Path) -> set[str]:
    """Top-level packages imported anywhere in a file, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found.add(str(node.module).split(".")[0])
    return found


def loaded_after(names: list[str]) -> set[str]:
    """Top-level packages in memory once a fresh interpreter has imported `names`."""
    program = (
        f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_no_file_imports_against_the_direction(package: str) -> None:
    files = list(modules(package))
    assert files
    wrong = {str(path.relative_to(ROOT)): imported_packages(path) & FORBIDDEN[package] for path, _ in files}
    assert {path: names for path, names in wrong.items() if names} == {}


def test_the_tools_of_training_and_tests_are_not_imported_at_run_time() -> None:
    for package in FORBIDDEN:
        for path, _ in modules(package):
            assert not imported_packages(path) & {
                "tests",
                "pytest",
                "hypothesis",
                "transformers",
                "models",
            }, path


def test_placement_loads_neither_torch_nor_ray_nor_sockets() -> None:
    loaded = loaded_after([name for _, name in modules("placement")])
    assert "numpy" in loaded
    assert not loaded & {"torch", "ray", "zmq", "msgpack", "orchestrator", "workers", "transport"}


def test_transport_loads_no_torch_and_no_ray() -> None:
    loaded = loaded_after([name for _, name in modules("transport")])
    assert not loaded & {"torch", "ray", "orchestrator", "workers"}


def test_the_names_of_packages_load_nothing_heavy() -> None:
    assert not loaded_after(["orchestrator", "workers", "transport", "placement"]) & {
        "torch",
        "ray",
        "zmq",
        "numpy",
    }


def test_a_models_configuration_loads_without_torch() -> None:
    assert "torch" not in loaded_after(["workers.model_config"])
