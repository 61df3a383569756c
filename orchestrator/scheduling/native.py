"""The compiled part of this package (`depths.cpp`), or the one line that says how to build it."""

from __future__ import annotations

from placement.errors import NativeCodeNotBuilt

try:
    from orchestrator.scheduling._depths import (
        Corrections,
        DraftDepth,
        MeasuredCosts,
        fastest,
        rows_taken_in,
    )
except ImportError as error:
    raise NativeCodeNotBuilt(f"orchestrator.scheduling: {error}: {NativeCodeNotBuilt.REMEDY}") from error

__all__ = ["Corrections", "DraftDepth", "MeasuredCosts", "fastest", "rows_taken_in"]
