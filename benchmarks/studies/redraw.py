"""Draw the gallery's figures again from the numbers beside them, without running a study.

Run from the project's root: `python -m benchmarks.studies.redraw`, with names for some of them only. It takes
seconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from benchmarks.studies import (
    caches,
    homes,
    pay_map,
    replicas,
    residency,
    scale,
    statistics_needed,
    step_map,
    trunk,
)
from benchmarks.studies.figures import read_rows

FIGURES: dict[str, Callable[[list[dict[str, Any]]], None]] = {
    "caches": caches.draw,
    "homes": homes.draw,
    "pay-map": pay_map.draw,
    "pay-map-steps": step_map.draw_readme,
    "pay-map-steps-beside": step_map.draw_beside,
    "replicas": replicas.draw,
    "residency": residency.draw,
    "scale": scale.draw,
    "statistics-needed": statistics_needed.draw,
    "trunk": trunk.draw,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(FIGURES))
    names = parser.parse_args().names
    unknown = sorted(set(names) - set(FIGURES))
    if unknown:
        parser.error(f"no figure is called {', '.join(unknown)}: expected {', '.join(FIGURES)}")
    for name in names or FIGURES:
        FIGURES[name](read_rows(name))


if __name__ == "__main__":
    main()
