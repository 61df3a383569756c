"""How a process of this program starts another: the same interpreter, and these very modules."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def python_command(module: str, *arguments: str) -> list[str]:
    """Runs a module, but none from the current folder, where one may be called as one of ours."""
    return [sys.executable, "-P", "-m", module, *arguments]


def python_environment(base: Mapping[str, str] | None = None) -> dict[str, str]:
    """`base`, this process's own where left out, with these modules found first."""
    given = os.environ if base is None else base
    path = os.pathsep.join(filter(None, (str(ROOT), given.get("PYTHONPATH", ""))))
    return {**given, "PYTHONPATH": path}
