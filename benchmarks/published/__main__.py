"""Published speeds beside predicted ones: `python -m benchmarks.published [--fit]`. docs/published.md."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.published.files import load_passes
from benchmarks.published.halves import Judgement, Published
from benchmarks.published.hardware_file import write_values
from benchmarks.published.probed import probed_range
from benchmarks.published.report import (
    class_table,
    device_table,
    draft_table,
    half_table,
    left_out_table,
    passes_table,
    summary_table,
    write_parts,
)
from benchmarks.published.same_boxes import same_boxes_range
from benchmarks.published.shares import fitted
from placement.errors import PotluckError
from placement.hardware.catalogue import REACHED, Catalogue, read_catalogue
from placement.hardware.spread import SPREADS

PAGE = Path(__file__).parents[2] / "docs" / "published.md"


def main(
    fit: Annotated[
        bool, typer.Option("--fit", help="Set what classes reach, judge it, and write both down.")
    ] = False,
) -> None:
    """Print both halves; with --fit also write what they set and the tables of docs/published.md."""
    try:
        catalogue = read_catalogue()
        if fit:
            _fit(catalogue)
            catalogue = read_catalogue()
        parts = page_parts(catalogue)
        for part in parts.values():
            print(part)
        if fit:
            write_parts(PAGE, parts)
    except PotluckError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(error.exit_code) from None


def page_parts(catalogue: Catalogue) -> dict[str, str]:
    """The tables of docs/published.md by their names there."""
    published = Published.load(catalogue)
    judgement = Judgement.of(published, catalogue)
    within = judgement.range()
    return {
        "summary": summary_table(judgement, within),
        "devices": device_table(judgement, catalogue),
        "classes": class_table(catalogue),
        "judged half": half_table(judgement.judged, within),
        "fitting half": half_table(judgement.fit, within),
        "left out": left_out_table(published.left_out),
        "passes": passes_table(load_passes(), catalogue),
        "drafts": draft_table(catalogue),
    }


def _fit(catalogue: Catalogue) -> None:
    """Write the classes' figures, then the ranges that follow from them as they are written."""
    published = Published.load(catalogue)
    values: dict[str, dict[str, float]] = {}
    for figure, value in fitted(published.fit, catalogue).items():
        values.setdefault(figure.of_class, {})[figure.name] = value
    write_values(REACHED, values)
    judgement = Judgement.of(published, read_catalogue())
    ranges = {"judged": judgement.range(), "probed": probed_range(), "same_boxes": same_boxes_range()}
    write_values(SPREADS, {key: asdict(found) for key, found in ranges.items()})


if __name__ == "__main__":
    typer.run(main)
