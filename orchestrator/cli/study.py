"""`potluck study`: many plans at once, as a table and a page."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from orchestrator.cli.inputs import files_read, load_shape, name_in_errors
from orchestrator.cli.options import Json
from orchestrator.cli.output import console, errors, print_json, print_note, table
from orchestrator.cli.planning_only import planning_only_note
from orchestrator.study_report.comparison import (
    compare,
    setting_labels,
    summary,
    winners,
    winners_sentence,
)
from orchestrator.study_report.page import write_page
from placement.answers.study.config import Study
from placement.answers.study.fit import not_fitting
from placement.answers.study.grid import cells, fingerprint
from placement.answers.study.inputs import check_inputs
from placement.answers.study.results import ResultsFolder
from placement.answers.study.runner import run_cells
from placement.files.atomic import check_targets
from placement.given.cluster_file import load_known_cluster
from placement.hardware.spread import packaged_spreads
from placement.units import gain_of

_PAGE = "report.html"


def study(
    file: Annotated[Path, typer.Argument(help="Study file (see docs/studies/).", metavar="STUDY")],
    out: Annotated[
        Path | None, typer.Option(help="Results folder; default: the study file's name beside it.")
    ] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Default: the cores of this machine.")] = None,
    json: Json = False,
) -> None:
    """Plan and judge every cell of a grid; an interrupted study goes on where it stopped."""
    loaded = Study.load(file)
    with name_in_errors(f"{file}: model"):
        shape = load_shape(loaded.model)
    folder = out or file.with_suffix("")
    # Unlike Path.is_dir, False for names that no folder can have.
    if os.path.isdir(folder):
        written = [folder / name for name in (*ResultsFolder.FILES, _PAGE)]
        check_targets(written, inputs=files_read(file, loaded.model, *loaded.files))
    check_inputs(loaded, shape)
    grid = cells(loaded)
    keys = [cell.key for cell in grid]
    results = ResultsFolder.open(folder, loaded.name, fingerprint(loaded, shape), keys)
    done = {row.key for row in results.rows}
    todo = [cell for cell in grid if cell.key not in done]
    print_note(f"{len(todo)} of {len(grid)} cells to compute, some seconds each …")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True) as progress:
        task = progress.add_task("cells", total=len(grid), completed=len(done))
        for row in run_cells(shape, todo, processes or os.cpu_count() or 1):
            results.add(row)
            progress.advance(task)
    results.sort(keys)
    page = results.folder / _PAGE
    write_page(loaded, results.rows, page)
    same_boxes = packaged_spreads().same_boxes
    missing, found = not_fitting(results.rows), winners(results.rows, same_boxes)
    if json:
        print_json(
            {
                "study": loaded.name,
                "cells": [asdict(row) for row in results.rows],
                "not_fitting": [asdict(cluster) for cluster in missing],
                "winners": [{"setting": setting, "policy": policy} for setting, policy in found.items()],
                "csv": str(results.csv_path),
                "report": str(page),
            }
        )
        return
    comparisons = compare(results.rows, same_boxes)
    lines = [
        (
            setting,
            f"{1000 * (comparison.ours.step_s or 0):.2f}",
            comparison.best_baseline.policy,
            f"{1000 * (comparison.best_baseline.step_s or 0):.2f}",
            gain_of(comparison.gain),
            comparison.winner or "-",
        )
        for setting, comparison in zip(
            setting_labels([comparison.ours for comparison in comparisons]), comparisons, strict=True
        )
    ]
    if sentence := summary(comparisons):
        heading = ("setting", "planner, ms", "best baseline", "its ms", "gain", "winner")
        console.print(table(f"{loaded.name}: a step, the planner beside the best baseline", heading, lines))
        console.print(sentence)
    if promised := winners_sentence(found):
        console.print(promised)
    for cluster in missing:
        console.print(f"Does not fit: {cluster.sentence}.", markup=False, soft_wrap=True)
    if (planning_only := planning_only_note(map(load_known_cluster, loaded.clusters))) is not None:
        print_note(planning_only)
    print_note(f"{len(todo)} of {len(grid)} cells computed now; wrote {results.csv_path} and {page}")
