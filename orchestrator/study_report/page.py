"""Writes the page: charts of every text and quantisation, ours beside the best baseline, all rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from orchestrator.study_report.charts import legend, speed_bars, speed_lines
from orchestrator.study_report.comparison import (
    batch_label,
    compare,
    setting_labels,
    summary,
    winners,
    winners_sentence,
)
from placement.answers.prediction_range import NO_DIFFERENCE
from placement.answers.study.config import Study
from placement.answers.study.fit import not_fitting
from placement.answers.study.results import Row
from placement.files.atomic import replacing
from placement.hardware.spread import packaged_spreads
from placement.policies.registry import RUN_POLICIES
from placement.units import between, gain_of


@dataclass(frozen=True, slots=True)
class Chart:
    """Panels that belong together, as SVG text; `note` says what they show."""

    title: str
    note: str
    panels: list[str]


def write_page(study: Study, rows: Sequence[Row], path: Path) -> None:
    """One HTML file with everything in it; an existing one is replaced in one step."""
    same_boxes = packaged_spreads().same_boxes
    comparisons = compare(rows, same_boxes)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("page.html").render(
        study=study,
        rows=rows,
        charts=list(_charts(study, rows)),
        comparisons=zip(setting_labels([c.ours for c in comparisons]), comparisons, strict=True),
        summary=summary(comparisons),
        promised=winners_sentence(winners(rows, same_boxes)),
        no_difference=NO_DIFFERENCE,
        not_fitting=not_fitting(rows),
        batch_label=batch_label,
        gain_of=gain_of,
        between=between,
        run_policies=RUN_POLICIES,
        has_hits=any(row.hit_share is not None for row in rows),
    )
    with replacing(path) as file:
        file.write(text.encode())


def _charts(study: Study, rows: Sequence[Row]) -> Iterator[Chart]:
    """Of each text and quantisation: policies, contexts and batches, where there are several of these."""
    batch, context = study.batches[0].label, study.contexts[0]
    for trace in study.traces:
        for quant in study.quants:
            here = [row for row in rows if (row.trace, row.quant) == (trace.name, quant)]
            one_batch = [row for row in here if batch_label(row) == batch]
            one_context = [row for row in here if row.context == context]
            at = f"{trace.name}, {quant}"
            yield Chart(
                f"{at}: policies",
                f"Tokens per second on text the plan was not made from, batch {batch}, context {context:,}. "
                "Longer is better.",
                _bars(study, [row for row in one_batch if row.context == context]),
            )
            if len(study.contexts) > 1:
                ticks = [f"{context:,}" for context in study.contexts]
                yield Chart(
                    f"{at}: contexts",
                    f"Tokens per second by positions in each sequence's KV cache, batch {batch}. "
                    "Where lines coincide the first policy is on top; a line ends where there is no room.",
                    _lines(study, one_batch, "context", ticks, lambda row: f"{row.context:,}"),
                )
            if len(study.batches) > 1:
                yield Chart(
                    f"{at}: batches",
                    "Tokens per second of all sequences together, by sequences of a pass (and drafts of "
                    f"each), context {context:,}. Where lines coincide the first policy is on top.",
                    _lines(study, one_context, "batch", [b.label for b in study.batches], batch_label),
                )


def _bars(study: Study, rows: Sequence[Row]) -> list[str]:
    speeds = {(row.cluster, row.policy): row.tokens_per_s for row in rows}
    return [
        speed_bars(cluster.stem, {policy: speeds.get((cluster.stem, policy)) for policy in study.policies})
        for cluster in study.clusters
    ]


def _lines(
    study: Study, rows: Sequence[Row], axis: str, ticks: list[str], tick_of: Callable[[Row], str]
) -> list[str]:
    speeds = {(row.cluster, row.policy, tick_of(row)): row.tokens_per_s for row in rows}
    panels = [
        speed_lines(
            cluster.stem,
            axis,
            ticks,
            {
                policy: [speeds.get((cluster.stem, policy, tick)) for tick in ticks]
                for policy in study.policies
            },
        )
        for cluster in study.clusters
    ]
    return [*panels, legend(study.policies)]
