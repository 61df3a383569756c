"""Libraries that are compiled when Potluck is installed."""

from __future__ import annotations

import ctypes
import importlib.machinery
from pathlib import Path

from placement.errors import NativeCodeNotBuilt


def load_library(folder: Path, name: str) -> ctypes.CDLL:
    """The library `name` in a folder of the source; raises NativeCodeNotBuilt."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = folder / f"{name}{suffix}"
        if path.exists():
            return ctypes.CDLL(str(path))
    raise NativeCodeNotBuilt(f"{folder} has no compiled {name} library: {NativeCodeNotBuilt.REMEDY}")
