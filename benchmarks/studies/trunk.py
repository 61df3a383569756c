"""What splitting the trunk over two equal boxes would buy, beside the best plan with experts alone.

Run from the project's root: `python -m benchmarks.studies.trunk` (some seconds). It prints the table of
docs/studies/README.md too.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from benchmarks.studies.device_figures import LINKS, memory
from benchmarks.studies.figures import plain_ticks, save
from benchmarks.studies.trunk_splits import Work, distinct_experts, work_of
from benchmarks.studies.whole_steps import CONTEXTS, EXPERT_BYTES, problem_of, with_drafts
from placement.given.cluster_spec import ClusterSpec, LinkSpec, NodeSpec
from placement.given.problem import PlanningProblem
from placement.given.traces import GENERAL, SyntheticRouter
from placement.model_shape import STEP_3_5_FLASH as SHAPE

MEMORY_GBYTES_PER_S = (25, 60, 90, 220)
"""An old desktop, two with two channels of DDR5, and memory that a GPU shares."""
DRAWN_GBYTES_PER_S = (25, 60, 220)
DRAWN_GBITS_PER_S = (2.5, 10.0)
CABLES = {name: LINKS[name] for name in ("1 Gbit/s", "2.5 Gbit/s", "10 Gbit/s")}
ROWS = (1, 2, 3, 4)
WORTH = 0.15
ROUND_TRIPS_S = np.geomspace(2e-5, 3e-3, 45)
GBITS_PER_S = np.geomspace(0.5, 40, 24)
TEXT_TOKENS = 2048
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
WAYS = {
    "dense layers and lm_head asked": Work.outer_asked_s,
    "attention asked too": Work.trunk_asked_s,
    "both boxes in step": Work.in_step_s,
}
SPLITS = ("attention asked too", "both boxes in step")
Row = dict[str, Any]


def main() -> None:
    trace = SyntheticRouter(SHAPE).trace(GENERAL, TEXT_TOKENS)
    distinct = {rows: distinct_experts(trace, rows) for rows in (*ROWS, *(2 * n for n in ROWS))}
    works = {
        Pass(speed, rows, context): work_of(problem(speed, rows, context), distinct[rows])
        for speed, rows, context in itertools.product(MEMORY_GBYTES_PER_S, ROWS, CONTEXTS)
    }
    rows = []
    for (each, work), link in itertools.product(works.items(), CABLES.values()):
        row = row_of("table", each, work, link)
        row["longest round trip ms"] = longest_round_trip_ms(work, link.bandwidth_bytes_per_s)
        # One text a box at any time, so a pass of both takes as long as one of one.
        two = work_of(problem(each.gbytes_per_s, each.rows, each.context, texts=2), distinct[2 * each.rows])
        row["whole layers, two texts gain"] = best_of_experts_s(two, link) / work.whole_layers_s(link) - 1
        rows.append(row)
    for speed, gbits, trip_s in itertools.product(DRAWN_GBYTES_PER_S, DRAWN_GBITS_PER_S, ROUND_TRIPS_S):
        each = Pass(speed, 1, CONTEXTS[0])
        rows.append(row_of("gains", each, works[each], LinkSpec(float(trip_s), gbits * 1e9 / 8)))
    for speed, number, gbits in itertools.product(DRAWN_GBYTES_PER_S, ROWS, GBITS_PER_S):
        each = Pass(speed, number, CONTEXTS[0])
        link = LinkSpec(longest_round_trip_ms(works[each], gbits * 1e9 / 8) / 1e3, gbits * 1e9 / 8)
        rows.append(row_of("frontier", each, works[each], link))
    print_table(rows)
    draw(rows)


@dataclass(frozen=True, slots=True)
class Pass:
    """What is computed on two boxes with this memory; `rows` of one text."""

    gbytes_per_s: int
    rows: int
    context: int


def row_of(purpose: str, each: Pass, work: Work, link: LinkSpec) -> Row:
    """One line of the numbers behind the figure.

    Args:
        purpose: "table", "gains" (the upper half) or "frontier" (the lower: with the longest round trip that
            gains 15%, 0 where none does).
    """
    best_s = best_of_experts_s(work, link)
    row: Row = {
        "for": purpose,
        "memory_gbytes_per_s": each.gbytes_per_s,
        "rows": each.rows,
        "context": each.context,
        "gbits_per_s": link.bandwidth_bytes_per_s * 8 / 1e9,
        "round_trip_ms": 1e3 * link.round_trip_s,
        "trunk ms": 1e3 * work.head_s,
        "one box ms": 1e3 * work.one_box_s(),
        "experts alone ms": 1e3 * best_s,
    }
    row |= {way: best_s / seconds(work, link) - 1 for way, seconds in WAYS.items()}
    return row | {
        "whole layers": best_s / work.whole_layers_s(link) - 1,
        "whole layers, two texts gain": "",
        "longest round trip ms": "",
    }


def problem(gbytes_per_s: float, rows: int, context: int, texts: int = 1) -> PlanningProblem:
    """One box with room for everything; the second is its twin.

    Args:
        rows: of each text: a token and its drafts.
    """
    box = memory(gbytes_per_s, SHAPE.num_routed_experts * EXPERT_BYTES)
    cluster = ClusterSpec("home", (NodeSpec("home", None, (box,), None),))
    return with_drafts(problem_of(cluster, None, texts), rows - 1, context)


def best_of_experts_s(work: Work, link: LinkSpec) -> float:
    """What pooling gives today: experts on two boxes, or one box if that is faster."""
    return min(work.one_box_s(), work.experts_s(link))


def best_gain(work: Work, link: LinkSpec) -> float:
    """Of the faster of the two ways to split all of the trunk."""
    return best_of_experts_s(work, link) / min(work.trunk_asked_s(link), work.in_step_s(link)) - 1


def longest_round_trip_ms(work: Work, bytes_per_s: float) -> float:
    """Up to which splitting the trunk gains 15%, 3 at most; 0 where it does at none that was tried."""
    gains = np.array([best_gain(work, LinkSpec(float(trip), bytes_per_s)) for trip in ROUND_TRIPS_S])
    worth = np.flatnonzero(gains >= WORTH)
    if not len(worth):
        return 0.0
    last = slice(worth[-1], worth[-1] + 2)
    # Gains fall from here on.
    return 1e3 * float(np.interp(-WORTH, -gains[last], ROUND_TRIPS_S[last]))


def print_table(rows: Sequence[Row]) -> None:
    """As docs/studies/README.md has it; gains of the faster of the two ways to split all of the trunk."""
    found = {
        (row["memory_gbytes_per_s"], row["rows"], row["context"], row["gbits_per_s"]): row
        for row in rows
        if row["for"] == "table"
    }

    print("| two boxes of | one box | experts alone | trunk split | 1 | 2 | 4 | 32,768 | 15% up to |")
    print("|---|---|---|---|---|---|---|---|---|")
    for speed, (name, link) in itertools.product(MEMORY_GBYTES_PER_S, CABLES.items()):
        gbits = link.bandwidth_bytes_per_s * 8 / 1e9
        row = found[speed, 1, CONTEXTS[0], gbits]
        others = [found[speed, number, CONTEXTS[0], gbits] for number in (1, 2, 4)]
        gains = [max(each[way] for way in SPLITS) for each in (*others, found[speed, 1, CONTEXTS[1], gbits])]
        one, experts = 1e3 / row["one box ms"], 1e3 / row["experts alone ms"]
        cells = [f"{one:.1f}", f"{experts:.1f}", f"{experts * (1 + gains[0]):.1f}"]
        cells += [f"{100 * share:+.0f}%" for share in gains]
        print(f"| {speed} GB/s, {name} | {' | '.join(cells)} | {row['longest round trip ms']:.2f} ms |")


def draw(rows: Sequence[Row]) -> None:
    """Above: gains by round trip, for one token a pass. Below: up to which link the best one gains 15%."""
    figure, axes = plt.subplots(2, len(DRAWN_GBYTES_PER_S), figsize=(10.5, 6.6), layout="constrained")
    for column, speed in enumerate(DRAWN_GBYTES_PER_S):
        mine = [row for row in rows if row["memory_gbytes_per_s"] == speed]
        gains = [row for row in mine if row["for"] == "gains"]
        draw_gains(axes[0, column], gains)
        axes[0, column].set_title(f"memory of {speed} GB/s: trunk {gains[0]['trunk ms']:.0f} ms", size=10)
        draw_frontier(axes[1, column], [row for row in mine if row["for"] == "frontier"])
    axes[0, 0].set_ylabel("faster than experts alone, %\n(one token a pass)", size=9)
    axes[1, 0].set_ylabel("round trip, ms", size=9)
    axes[0, 0].legend(frameon=False, fontsize=7.5, loc="upper right")
    axes[1, -1].legend(
        frameon=False, fontsize=7.5, loc="upper right", title="tokens a pass", title_fontsize=7.5
    )
    save(figure, rows, "trunk")


def draw_gains(panel: Axes, rows: Sequence[Row]) -> None:
    for (way, colour), (gbits, style) in itertools.product(
        zip(WAYS, COLOURS, strict=False), zip(DRAWN_GBITS_PER_S, ("-", ":"), strict=True)
    ):
        mine = [row for row in rows if row["gbits_per_s"] == gbits]
        label = way if style == "-" else None
        trips, gains = ([row[key] for row in mine] for key in ("round_trip_ms", way))
        panel.plot(trips, [100 * gain for gain in gains], style, color=colour, lw=1.6, label=label)
    panel.axhline(100 * WORTH, color="black", lw=0.7, ls="--")
    panel.axhline(0, color="black", lw=0.7)
    panel.set_xscale("log")
    plain_ticks(panel.xaxis, (0.03, 0.1, 0.3, 1, 3))
    panel.set_ylim(-10, 60)
    panel.set_xlabel("round trip, ms (2.5 Gbit/s; dotted: 10)", size=9)
    panel.grid(alpha=0.25)


def draw_frontier(panel: Axes, rows: Sequence[Row]) -> None:
    """Below each line splitting the trunk gains 15% or more."""
    for number, colour in zip(ROWS, COLOURS, strict=True):
        mine = [row for row in rows if row["rows"] == number]
        trips = np.array([row["round_trip_ms"] or np.nan for row in mine], dtype=float)
        panel.plot([row["gbits_per_s"] for row in mine], trips, color=colour, lw=1.6, label=f"{number}")
    for name, link in CABLES.items():
        gbits, trip_ms = link.bandwidth_bytes_per_s * 8 / 1e9, 1e3 * link.round_trip_s
        panel.plot(gbits, trip_ms, "k.", ms=6)
        panel.annotate(name, (gbits, trip_ms), xytext=(4, -9), textcoords="offset points", size=7)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlim(GBITS_PER_S[0], GBITS_PER_S[-1])
    panel.set_ylim(1e3 * ROUND_TRIPS_S[0], 1e3 * ROUND_TRIPS_S[-1])
    plain_ticks(panel.xaxis, (0.5, 1, 2.5, 10, 40))
    plain_ticks(panel.yaxis, (0.03, 0.1, 0.3, 1, 3))
    panel.set_xlabel("bandwidth, Gbit/s (below a line: 15% or more)", size=9)
    panel.grid(alpha=0.25)


if __name__ == "__main__":
    main()
