"""The compiled part of this package (`row_ends.c`), or the one line that says how to build it."""

from __future__ import annotations

from placement.errors import NativeCodeNotBuilt

try:
    from orchestrator.model import _row_ends as row_ends
except ImportError as error:
    raise NativeCodeNotBuilt(f"orchestrator.model: {error}: {NativeCodeNotBuilt.REMEDY}") from error

__all__ = ["row_ends"]
