"""Predicted beside measured: `python -m benchmarks.fidelity [--rounds 5] [--only NAME] [--json FILE]`."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from datetime import date
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.fidelity.layouts import SETUPS
from benchmarks.fidelity.model import write_model
from benchmarks.fidelity.reference import errors, median_error, write_reference
from benchmarks.fidelity.run import Layout, Model, run_setup


def main(
    rounds: Annotated[
        int, typer.Option(min=1, help="Of each setup: probes, then runs. Three times as many on one box.")
    ] = 5,
    tokens: Annotated[int, typer.Option(min=2, help="Generated in each run.")] = 25,
    only: Annotated[list[str] | None, typer.Option(help="Names of setups; all when left out.")] = None,
    model: Annotated[Path | None, typer.Option(help="Folder to keep the model in.")] = None,
    details: Annotated[bool, typer.Option(help="Print the cluster file's numbers too.")] = False,
    machine: Annotated[
        str | None, typer.Option(help="Its description: makes this run the reference.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the layouts here, as they come.")
    ] = None,
) -> None:
    """Run every layout and print its table."""
    console = Console()
    layouts: list[Layout] = []
    with tempfile.TemporaryDirectory() as scratch:
        loaded = Model.load(write_model(model or Path(scratch)))
        for setup in SETUPS:
            if only and setup.name not in only:
                continue
            # Its aim is closer, and its rounds take less time.
            more = 1 if setup.num_workers else 3
            result = run_setup(loaded, setup, rounds=more * rounds, tokens=tokens)
            layouts += result.layouts
            taken = (
                f"others took at most {result.others:.1%}, probes around a run differed by {result.drift:.1%}"
            )
            console.print(f"{setup.name}: {taken}, {result.discarded} rounds were left out")
            if json_file is not None:
                json_file.write_text(json.dumps([asdict(layout) for layout in layouts], indent=1) + "\n")
            if details:
                console.print(result.cluster, result.layouts)
    console.print(table(layouts))
    found = errors(layouts)
    for part in ("decode", "prefill"):
        of_part = {name: error for name, error in found.items() if name.endswith(part)}
        worst = max(map(abs, of_part.values()))
        console.print(f"{part}: median error {median_error(of_part):.1%}, worst {worst:.1%}")
    if machine is not None:
        write_reference(layouts, date.today().isoformat(), machine)


def table(layouts: list[Layout]) -> Table:
    part = ("measured", "spread", "error")
    found = Table("layout", "drafts", "step ms", *part, "prefill ms", *part)
    for layout in layouts:
        cells = []
        for times in (layout.decode, layout.prefill):
            cells += [
                f"{median(times.predicted_s) * 1000:.2f}",
                f"{median(times.measured_s) * 1000:.2f}",
                f"±{times.spread:.1%}",
                f"{times.error:+.1%}",
            ]
        found.add_row(layout.setup, str(layout.drafts), *cells)
    return found


if __name__ == "__main__":
    typer.run(main)
