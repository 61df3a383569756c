"""Writes the page: charts at the study's first settings, ours beside the best baseline, all rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jinja2

from orchestrator.study_report.charts import speed_bars, speed_lines
from placement.atomic import replacing
from placement.study.config import Study
from placement.study.results import Row

# The planner's own policies; all others are what people do today.
OURS = ("least-time",)
# What nobody can do, since it knows the text to come.
BOUNDS = ("opt",)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One setting of a study: the planner's plan beside the best of the other policies."""

    setting: str
    ours: Row
    best_baseline: Row

    @property
    def gain(self) -> float:
        """Share by which the best baseline's step is longer."""
        assert self.ours.step_s is not None
        assert self.best_baseline.step_s is not None
        return self.best_baseline.step_s / self.ours.step_s - 1


def compare(rows: list[Row]) -> list[Comparison]:
    """Every setting in which both the planner and some baseline have a plan that fits."""
    settings: dict[str, list[Row]] = {}
    for row in rows:
        if row.step_s is not None:
            settings.setdefault(row.key.rpartition("/")[0], []).append(row)
    found = []
    for setting, group in settings.items():
        ours = [row for row in group if row.policy in OURS]
        others = [row for row in group if row.policy not in (*OURS, *BOUNDS)]
        if ours and others:
            found.append(Comparison(setting, _fastest(ours), _fastest(others)))
    return found


def write_page(study: Study, rows: list[Row], path: Path) -> None:
    """One HTML file with everything in it; an existing one is replaced in one step."""
    first = study.batches[0]
    clusters = [cluster.stem for cluster in study.clusters]
    charts = []
    base = [row for row in rows if row.trace == study.traces[0].name and row.quant == study.quants[0]]
    one_batch = [row for row in base if (row.sequences, row.drafts) == (first.sequences, first.drafts)]
    at = f"{study.traces[0].name} text, {study.quants[0]}"
    by_policy = [row for row in one_batch if row.context == study.contexts[0]]
    charts.append(
        (
            f"Speed by policy ({at}, batch {first.label}, context {study.contexts[0]})",
            speed_bars(by_policy, clusters, study.policies),
        )
    )
    if len(study.contexts) > 1:
        lines = speed_lines(one_batch, "context", clusters, study.policies)
        charts.append((f"Speed by context ({at}, batch {first.label})", lines))
    plain = [row for row in base if row.context == study.contexts[0] and not row.drafts]
    if len({row.sequences for row in plain}) > 1:
        lines = speed_lines(plain, "sequences", clusters, study.policies)
        charts.append((f"Speed by sequences decoded together ({at}, context {study.contexts[0]})", lines))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    text = environment.get_template("page.html").render(
        study=study, rows=rows, charts=charts, comparisons=compare(rows)
    )
    with replacing(path) as file:
        file.write(text.encode())


def _fastest(rows: list[Row]) -> Row:
    return min(rows, key=lambda row: row.step_s or float("inf"))
