"""Packages import in one direction, and light ones stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest

from tests.forks.forks import Forks

ROOT = Path(__file__).parents[1]

# orchestrator -> workers -> transport; everything may use placement, which uses none of them.
FORBIDDEN = {
    "placement": {"orchestrator", "workers", "transport", "torch", "ray", "zmq", "msgpack"},
    "transport": {"orchestrator", "workers", "torch", "ray"},
    "workers": {"orchestrator"},
    "orchestrator": set[str](),
}

# What a running model may use of placement/: its root, careful file access, the choice among holders. All
# else there answers questions before or beside a run, and belongs to commands.
GROUND_FLOOR = ("placement.files", "placement.assign")
OF_COMMANDS = (
    "orchestrator.cli",
    "orchestrator.cluster",
    "orchestrator.probe",
    "orchestrator.study_report",
    "workers.probe",
)

# The rooms of placement/ and what each stands on; "" is its root. Bounds and policies do not know each other,
# and other engines' files know neither costs nor plans of ours.
ROOMS = {
    "": {"files", "assign"},
    "files": {""},
    "assign": {""},
    "fields": {"", "files"},
    "hardware": {"", "files", "fields"},
    "given": {"", "files", "fields", "hardware"},
    "interop": {"", "files", "given"},
    "routing": {"", "given"},
    "cost": {"", "assign", "given"},
    "replay": {"", "assign", "given", "cost"},
    "bounds": {"", "given", "cost"},
    "policies": {"", "files", "assign", "given", "routing", "cost", "replay"},
    "answers": {
        "",
        "files",
        "fields",
        "assign",
        "given",
        "hardware",
        "interop",
        "routing",
        "cost",
        "replay",
        "bounds",
        "policies",
    },
}


def modules(package: str) -> Iterator[tuple[Path, str]]:
    """Source file and dotted name of every module in `package`."""
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield path, ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports_of(path: Path) -> list[ast.Import | ast.ImportFrom]:
    """All that a file has, inside functions too."""
    tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return [node for node in tree if isinstance(node, ast.Import | ast.ImportFrom)]


def imported_packages(path: Path) -> set[str]:
    """Top-level packages imported anywhere in a file."""
    found = set()
    for node in imports_of(path):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        else:
            assert node.level == 0, f"{path}: a relative import"
            found.add(str(node.module).split(".")[0])
    return found


def loaded_after(names: list[str]) -> set[str]:
    """Top-level packages in memory once a fresh interpreter has imported `names`."""
    return {name.split(".")[0] for name in loaded_modules_after(names)}


def loaded_modules_after(
    names: list[str],
    command: Callable[[Sequence[str]], list[str]] = lambda arguments: [sys.executable, *arguments],
) -> set[str]:
    """All modules in memory once an interpreter without ours has imported `names`.

    Args:
        command: that runs Python with these arguments; a fresh one unless given.
    """
    program = f"""
import importlib, sys
for name in [name for name in sys.modules if name.split(".")[0] in {sorted(FORBIDDEN)!r}]:
    del sys.modules[name]
for name in {names!r}:
    importlib.import_module(name)
print(*sys.modules)
"""
    run = subprocess.run(
        command(["-c", program]), cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def is_ground_floor(module: str) -> bool:
    """Whether the runtime may import a module of placement/."""
    is_root = module.count(".") == 1 and not (ROOT / module.replace(".", "/")).is_dir()
    return is_root or module.startswith(GROUND_FLOOR)


def is_above(module: str) -> bool:
    """Whether a module belongs to a room of placement/ that only commands may use."""
    return module.startswith("placement.") and not is_ground_floor(module)


def imported_modules(path: Path) -> set[str]:
    """Modules imported anywhere in a file by `from MODULE import`."""
    return {str(node.module) for node in imports_of(path) if isinstance(node, ast.ImportFrom)}


@pytest.mark.parametrize("package", ["orchestrator", "workers", "transport"])
def test_the_runtime_imports_the_ground_floor_of_placement_and_nothing_else_of_it(package: str) -> None:
    wrong = {
        name: above
        for path, name in modules(package)
        if not name.startswith(OF_COMMANDS)
        and (
            above := {
                m for m in imported_modules(path) if m.startswith("placement.") and not is_ground_floor(m)
            }
        )
    }
    assert wrong == {}


def test_the_ground_floor_stands_on_itself_and_is_light() -> None:
    floor = [name for _, name in modules("placement") if name.count(".") and is_ground_floor(name)]
    assert {"placement.plan", "placement.holders", "placement.files.atomic"} < set(floor)
    loaded = loaded_modules_after(floor)
    assert {name for name in loaded if is_above(name)} == set()
    assert not {name.split(".")[0] for name in loaded} & {"scipy", "pydantic", "yaml", "matplotlib", "typer"}


def test_a_session_loads_no_room_of_the_planner(forks: Forks) -> None:
    loaded = {
        name
        for name in loaded_modules_after(["orchestrator.session"], forks.command)
        if name.startswith("placement.")
    }
    assert "placement.plan" in loaded
    assert {name for name in loaded if not is_ground_floor(name)} == set()


def room_of(module: str) -> str:
    """The room of a module of placement/, "" for its root."""
    name = module.split(".")[1] if "." in module else ""
    return name if (ROOT / "placement" / name).is_dir() else ""


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_of_placement_stands_on_those_below_it(room: str) -> None:
    inside = [(path, name) for path, name in modules("placement") if room_of(name) == room]
    assert inside
    wrong = {
        name: above
        for path, name in inside
        if (
            above := {
                module
                for module in imported_modules(path)
                if module.split(".")[0] == "placement" and room_of(module) not in ROOMS[room] | {room}
            }
        )
    }
    assert wrong == {}


def test_no_two_rooms_of_placement_stand_on_each_other() -> None:
    """But the ground floor: the root, files and the choice among holders are one."""
    floor = {"", *(room.removeprefix("placement.") for room in GROUND_FLOOR)}
    settled = set(floor)
    while ready := {room for room, below in ROOMS.items() if room not in settled and below <= settled}:
        settled |= ready
    assert settled == set(ROOMS)


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
