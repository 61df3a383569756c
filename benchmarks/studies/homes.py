"""Does a second box pay? Typical homes, in tokens/s of whole steps, beside what else could be bought.

Run from the project's root: `python -m benchmarks.studies.homes` (about four minutes on two cores).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from benchmarks.studies.device_figures import FREE_ROWS, LINKS, TWO_GBIT, LinkKind
from benchmarks.studies.two_boxes import Home, Speeds, speeds
from benchmarks.studies.whole_steps import CONTEXTS

ROOMS = {"needed for room": 0.7, "not needed for room": 1.0}
ALONE = "alone"
"""In place of a link: no second box."""
LINK_COLOURS = ("#CC79A7", "#56B4E9", "#0072B2", "#000000")
LINK_MARKERS = ("v", "o", "s", "D")
MEASURED, FREE = "measured", "free"
# As much as predictions may be off.
UNSURE = 0.10

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of box: the rate of its memory, and whether a GPU has the head."""

    name: str
    gbytes_per_s: float
    has_card: bool

    def home(self, share: float, link: LinkKind | None, rows: str) -> Home:
        """Such a box with such a second one."""
        return Home(self.gbytes_per_s, share, link, self.has_card, FREE_ROWS if rows == FREE else None)


KINDS = (
    Kind("CPU, 25 GB/s", 25, False),
    Kind("CPU, 60 GB/s", 60, False),
    Kind("CPU, 90 GB/s", 90, False),
    Kind("CPU, 60 GB/s, GPU head", 60, True),
    Kind("CPU, 90 GB/s, GPU head", 90, True),
    Kind("unified, 220 GB/s", 220, False),
)

Question = tuple[Kind, str, LinkKind | None, str]


def main() -> None:
    questions: list[Question] = [
        (kind, room, link, rows)
        for kind, room, link in itertools.product(KINDS, ROOMS, (None, *LINKS))
        for rows in ((MEASURED, FREE) if link == TWO_GBIT else (MEASURED,))
    ]
    with ProcessPoolExecutor(2) as pool:
        found = list(pool.map(_speeds, questions, chunksize=4))
    rows = [
        row for question, speed in zip(questions, found, strict=True) for row in _rows_of(question, speed)
    ]
    draw(rows)
    print(table(rows))


def _speeds(question: Question) -> Speeds:
    kind, room, link, rows = question
    return speeds(kind.home(ROOMS[room], link, rows))


def _rows_of(question: Question, found: Speeds) -> list[dict[str, object]]:
    kind, room, link, rows = question
    return [
        {
            "home": kind.name,
            "second_box": room,
            "link": ALONE if link is None else link.name,
            "several_rows": rows,
            "context": context,
            **{f"{family} tokens/s": best.tokens_per_s for family, best in whole.items()},
            **{f"{family} drafts": best.drafts for family, best in whole.items()},
        }
        for context, whole in found.whole.items()
    ]


def gain(row: Row) -> float:
    """How many times as fast pooled experts are as the best of whole layers and one box."""
    without = max(float(row["one box tokens/s"]), float(row["whole layers tokens/s"]))
    return float(row["experts tokens/s"]) / without


def verdict(times: float) -> str:
    """Whether pooling experts pays, where predictions may be off by `UNSURE`."""
    if times >= 1 + UNSURE:
        return "yes"
    return "no" if times * (1 + UNSURE) <= 1 else "no difference to promise"


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: each home at the shorter context, several rows costing what was measured."""
    known = {(r["home"], r["second_box"], r["link"], r["several_rows"], r["context"]): r for r in rows}

    def of(kind: Kind, room: str, link: str, several_rows: str = MEASURED) -> Row:
        return known[kind.name, room, link, several_rows, CONTEXTS[0]]

    lines = [
        "| home | second box | alone | whole layers, 2.5 Gbit/s | experts: "
        + " | ".join(link.name for link in LINKS)
        + " | rows free: gain at 2.5 Gbit/s | all in memory at home |",
        "|---" * (6 + len(LINKS)) + "|",
    ]
    for kind, room in itertools.product(KINDS, ROOMS):
        cable = of(kind, room, TWO_GBIT.name)
        cells = [kind.name, room, _speed(of(kind, room, ALONE), "one box")]
        cells.append(_speed(cable, "whole layers"))
        for link in LINKS:
            row = of(kind, room, link.name)
            cells.append(f"{_speed(row, 'experts')} {gain(row) - 1:+.0%} {verdict(gain(row))}")
        cells.append(f"{gain(of(kind, room, TWO_GBIT.name, FREE)) - 1:+.0%}")
        cells.append(_speed(of(kind, "not needed for room", ALONE), "one box"))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _speed(row: Row, family: str) -> str:
    return f"{row[f'{family} tokens/s']:.1f} ({row[f'{family} drafts']})"


def draw(rows: list[dict[str, Any]]) -> None:
    """The gain of pooled experts over the best without, by link; hollow: where several rows cost nothing."""
    # Here, since who asks for a verdict draws nothing.
    import matplotlib.pyplot as plt

    from benchmarks.studies.figures import plain_ticks, save

    places = list(itertools.product([kind.name for kind in KINDS], ROOMS))
    figure, axes = plt.subplots(
        1, len(CONTEXTS), figsize=(11, 5.6), layout="constrained", sharex=True, sharey=True
    )
    for panel, context in zip(axes, CONTEXTS, strict=True):
        panel.axvspan(1 / (1 + UNSURE), 1 + UNSURE, color="#DDDDDD", lw=0, zorder=0)
        panel.axvline(1, color="#666666", lw=0.8, zorder=1)
        for link, colour, marker in zip(LINKS, LINK_COLOURS, LINK_MARKERS, strict=True):
            for several_rows in (MEASURED, FREE):
                mine = {
                    (row["home"], row["second_box"]): gain(row)
                    for row in rows
                    if (row["link"], row["several_rows"], row["context"])
                    == (link.name, several_rows, context)
                }
                is_free = several_rows == FREE
                shift = 0.17 if is_free else -0.12
                panel.plot(
                    list(mine.values()),
                    [places.index(place) + shift for place in mine],
                    marker,
                    ms=4.5 if is_free else 6,
                    color=colour,
                    mfc="white" if is_free else colour,
                    label=None if is_free else link.name,
                )
        panel.set_title(f"context {context:,}", loc="left", size=9)
        panel.set_xscale("log")
        plain_ticks(panel.xaxis, (0.3, 0.5, 0.7, 1, 1.5, 2))
        panel.set_xlabel("pooled experts: times as fast as the best of one box and whole layers", size=9)
        panel.grid(alpha=0.25, axis="x")
    axes[0].set_yticks(range(len(places)), [f"{home}\n{room}" for home, room in places], size=8)
    axes[0].invert_yaxis()
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        title="Grey: no difference that we can promise. Hollow: where several rows cost no more than one",
        loc="outside upper center",
        ncols=len(LINKS),
        frameon=False,
        fontsize=9,
        title_fontsize=9,
    )
    save(figure, rows, "homes")


if __name__ == "__main__":
    main()
