"""Reference errors, kept in the repository, and what later runs are held to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.fidelity.run import Layout

PATH = Path(__file__).parent / "reference.json"
MAX_GROWTH = 0.05
"""Of the median error before CI fails."""


def errors(layouts: Sequence[Layout]) -> dict[str, float]:
    """Signed relative errors by layout and part, "2 workers, 3 drafts, decode"."""
    found = {}
    for layout in layouts:
        name = f"{layout.setup}, {layout.drafts} drafts"
        found[f"{name}, decode"] = layout.decode.error
        found[f"{name}, prefill"] = layout.prefill.error
    return found


def median_error(errors: dict[str, float]) -> float:
    """Of their sizes."""
    return median(abs(error) for error in errors.values())


def load_reference() -> dict[str, float]:
    """Errors as `errors` gives them, of the run that RESULTS.md shows."""
    document = json.loads(PATH.read_text(encoding="utf-8"))
    return {name: float(error) for name, error in document["errors"].items()}


def write_reference(layouts: Sequence[Layout], date: str, machine: str) -> None:
    """Replace the reference."""
    found = {name: round(error, 4) for name, error in errors(layouts).items()}
    document = {
        "date": date,
        "machine": machine,
        "median_error": median_error(found),
        "worst_error": max(map(abs, found.values())),
        "errors": found,
    }
    PATH.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
