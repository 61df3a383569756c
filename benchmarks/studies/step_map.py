"""The pay map in tokens/s of whole steps: head on a CPU and on a GPU, with the best number of drafts.

Run from the project's root: `python -m benchmarks.studies.step_map` (about five minutes on two idle cores).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from benchmarks.studies.device_figures import LINKS, TWO_GBIT, UNIFIED_GBYTES_PER_S
from benchmarks.studies.pay_map import ALPHA, COLOURS, FAMILIES
from benchmarks.studies.two_boxes import NO_DIFFERENCE, UNSURE, Home, Row, gain, speeds, verdict
from benchmarks.studies.whole_steps import CONTEXTS, Best

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROUND_TRIPS_MS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0)
MEMORY_GBYTES_PER_S = (25, 60, 90, 220)
HOME_SHARES = (0.5, 0.8, 1.0)
HEADS = ("CPU", "GPU")
UNSURE_ALPHA = 0.22
MOE_ALONE = 0
"""In place of a context: MoE layers alone, without drafts."""

Place = tuple[str, float, int, float]


def main() -> None:
    places = list(itertools.product(HEADS, HOME_SHARES, MEMORY_GBYTES_PER_S, ROUND_TRIPS_MS))
    with ProcessPoolExecutor(2) as pool:
        rows = [row for rows in pool.map(judge, places, chunksize=4) for row in rows]
    for context, head in itertools.product((MOE_ALONE, *CONTEXTS), HEADS):
        mine = [row for row in rows if (row["context"], row["head"]) == (context, head)]
        print(f"{part_name(context, head)}: {told([gain(row) for row in mine])}")
    draw_readme([row for row in rows if row["context"] == CONTEXTS[0]])
    draw_beside([row for row in rows if row["context"] != CONTEXTS[0]])


def told(gains: Sequence[float]) -> str:
    """In how many cells pooling experts pays."""
    words = [verdict(times) for times in gains]
    return (
        f"pooling experts gains {UNSURE:.0%} or more in {words.count('yes')} of {len(words)} cells and loses "
        f"that in {words.count('no')}"
    )


def judge(place: Place) -> list[dict[str, object]]:
    """A row for MoE layers alone, and one for each context."""
    head, share, gbytes_per_s, round_trip_ms = place
    link = replace(LINKS[TWO_GBIT], round_trip_s=round_trip_ms / 1e3)
    found = speeds(Home(gbytes_per_s, share, link, head == "GPU"))
    rows = []
    for context in (MOE_ALONE, *CONTEXTS):
        whole = found.whole.get(context)
        if whole is None:
            whole = {family: Best(1e3 / found.moe_ms[family], 0) for family in FAMILIES}
        row: dict[str, object] = {
            "context": context,
            "head": head,
            "home_share": share,
            "memory_gbytes_per_s": gbytes_per_s,
            "round_trip_ms": round_trip_ms,
        }
        row |= {f"{family} tokens/s": whole[family].tokens_per_s for family in FAMILIES}
        row |= {f"{family} drafts": whole[family].drafts for family in FAMILIES}
        rows.append(row | {"winner": max(FAMILIES, key=lambda family: whole[family].tokens_per_s)})
    return rows


def margin(row: Row) -> float:
    """How many times as fast pooled experts are as the best other kind, or that as they are: 1 or more."""
    times = gain(row)
    return max(times, 1 / times)


def part_name(context: int, head: str) -> str:
    """For titles."""
    if context == MOE_ALONE:
        return f"MoE layers alone, head on a {head}"
    return f"whole steps, head on a {head}, context {context:,}"


def draw_readme(rows: list[dict[str, Any]]) -> None:
    """Whole steps at the shorter context."""
    _draw(rows, [(CONTEXTS[0], head) for head in HEADS], "pay-map-steps")


def draw_beside(rows: list[dict[str, Any]]) -> None:
    """MoE layers alone on the same grid, and whole steps at the longer context."""
    parts = [(MOE_ALONE, HEADS[0]), *((CONTEXTS[1], head) for head in HEADS)]
    _draw(rows, parts, "pay-map-steps-beside")


def _draw(rows: list[dict[str, Any]], parts: list[tuple[int, str]], name: str) -> None:
    # Here, since who asks for a row draws nothing.
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    from benchmarks.studies.figures import save

    size = (3.3 * len(HOME_SHARES), 2.55 * len(parts) + 1.0)
    figure, axes = plt.subplots(
        len(parts), len(HOME_SHARES), figsize=size, sharex=True, sharey=True, layout="constrained"
    )
    for (line, part), (column, share) in itertools.product(enumerate(parts), enumerate(HOME_SHARES)):
        mine = [row for row in rows if (row["context"], row["head"], row["home_share"]) == (*part, share)]
        _draw_panel(axes[line, column], mine)
        fits = "all experts fit at home" if share == 1 else f"{share:.0%} of the experts fit at home"
        axes[line, column].set_title(fits, size=8.5)
    for line, (context, head) in enumerate(parts):
        what = (
            "MoE layers\nalone, no drafts"
            if context == MOE_ALONE
            else f"head on a {head}\ncontext {context:,}"
        )
        axes[line, 0].set_ylabel(f"{what}\n\nmemory, GB/s", size=8.5)
    figure.supxlabel("round trip, ms", size=9)
    handles = [Patch(color=colour, alpha=ALPHA, lw=0) for colour in COLOURS]
    handles.append(Patch(color="#999999", alpha=UNSURE_ALPHA, lw=0))
    figure.legend(
        handles,
        (
            "experts over the network",
            "whole layers",
            "one box",
            f"pale: pooling changes less than {UNSURE:.0%}",
        ),
        title="Fastest kind of plan. Above: times as fast as without pooled experts (blue), or as with them. "
        "Below: tokens/s (drafts)",
        loc="outside upper center",
        ncols=4,
        frameon=False,
        fontsize=9,
        title_fontsize=9,
    )
    save(figure, rows, name)


def _draw_panel(panel: Axes, rows: list[dict[str, Any]]) -> None:
    from matplotlib.patches import Rectangle

    by_place = {(row["memory_gbytes_per_s"], row["round_trip_ms"]): row for row in rows}
    for (y, speed), (x, trip) in itertools.product(enumerate(MEMORY_GBYTES_PER_S), enumerate(ROUND_TRIPS_MS)):
        row = by_place[speed, trip]
        winner = str(row["winner"])
        times = margin(row)
        alpha = UNSURE_ALPHA if verdict(gain(row)) == NO_DIFFERENCE else ALPHA
        colour = COLOURS[FAMILIES.index(winner)]
        panel.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, color=colour, alpha=alpha, lw=0))
        panel.text(x, y + 0.17, f"{times:.1f}", ha="center", va="center", size=8)
        drafts = f" ({row[f'{winner} drafts']})" if row["context"] != MOE_ALONE else ""
        tokens_per_s = float(row[f"{winner} tokens/s"])
        below = f"{tokens_per_s:.{0 if tokens_per_s >= 10 else 1}f}{drafts}"
        panel.text(x, y - 0.22, below, ha="center", va="center", size=6.5, color="#333333")
    panel.set_xticks(range(len(ROUND_TRIPS_MS)), [f"{trip:g}" for trip in ROUND_TRIPS_MS], size=8)
    names = [
        f"{rate}\n(unified)" if rate >= UNIFIED_GBYTES_PER_S else f"{rate}" for rate in MEMORY_GBYTES_PER_S
    ]
    panel.set_yticks(range(len(MEMORY_GBYTES_PER_S)), names, size=8)
    panel.set_xlim(-0.5, len(ROUND_TRIPS_MS) - 0.5)
    panel.set_ylim(-0.5, len(MEMORY_GBYTES_PER_S) - 0.5)


if __name__ == "__main__":
    main()
