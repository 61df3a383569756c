"""The compiled part of this package (`depths.cpp`), or the one line that says how to build it."""

from __future__ import annotations

from placement.errors import NativeCodeNotBuilt

try:
    from orchestrator.scheduling._depths import USUAL_ROWS, Corrections, DraftDepth, MeasuredCosts, fastest
except ImportError as error:
    raise NativeCodeNotBuilt(f"orchestrator.scheduling: {error}: {NativeCodeNotBuilt.REMEDY}") from error

__all__ = ["USUAL_ROWS", "Corrections", "DraftDepth", "MeasuredCosts", "fastest"]
