"""Does a second box pay? Typical homes, in tokens/s of whole steps, beside what else could be bought.

Run from the project's root: `python -m benchmarks.studies.homes` (about two minutes on two idle cores).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from benchmarks.studies.device_figures import LINKS, TWO_GBIT
from benchmarks.studies.two_boxes import UNSURE, Home, Row, Speeds, gain, speeds, verdict
from benchmarks.studies.whole_steps import CONTEXTS

ROOMS = {"needed for room": 0.7, "not needed for room": 1.0}
ALONE = "alone"
"""In place of a link: no second box."""
LINK_COLOURS = ("#CC79A7", "#56B4E9", "#0072B2", "#000000")
LINK_MARKERS = ("v", "o", "s", "D")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of box: the rate of its memory, and whether a GPU has the head."""

    name: str
    gbytes_per_s: float
    has_card: bool


KINDS = (
    Kind("CPU, 25 GB/s", 25, False),
    Kind("CPU, 60 GB/s", 60, False),
    Kind("CPU, 90 GB/s", 90, False),
    Kind("CPU, 25 GB/s, GPU head", 25, True),
    Kind("CPU, 60 GB/s, GPU head", 60, True),
    Kind("CPU, 90 GB/s, GPU head", 90, True),
    Kind("unified, 220 GB/s", 220, False),
)

Question = tuple[Kind, str, str]


def main() -> None:
    questions: list[Question] = list(itertools.product(KINDS, ROOMS, (ALONE, *LINKS)))
    with ProcessPoolExecutor(2) as pool:
        found = list(pool.map(_speeds, questions, chunksize=4))
    rows = [
        row for question, speed in zip(questions, found, strict=True) for row in _rows_of(question, speed)
    ]
    draw(rows)
    print(table(rows))


def _speeds(question: Question) -> Speeds:
    kind, room, link = question
    return speeds(Home(kind.gbytes_per_s, ROOMS[room], LINKS.get(link), kind.has_card))


def _rows_of(question: Question, found: Speeds) -> list[dict[str, object]]:
    kind, room, link = question
    return [
        {
            "home": kind.name,
            "second_box": room,
            "link": link,
            "context": context,
            **{f"{family} tokens/s": best.tokens_per_s for family, best in whole.items()},
            **{f"{family} drafts": best.drafts for family, best in whole.items()},
        }
        for context, whole in found.whole.items()
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: each home at the shorter context."""
    known = {
        (row["home"], row["second_box"], row["link"]): row for row in rows if row["context"] == CONTEXTS[0]
    }
    lines = [
        f"| home | second box | one box | whole layers | experts: {' | '.join(LINKS)} | does pooling pay? "
        "| a GPU for the head instead |",
        "|---" * (6 + len(LINKS)) + "|",
    ]
    for kind, room in itertools.product(KINDS, ROOMS):
        with_links = [known[kind.name, room, link] for link in LINKS]
        alone, cable = known[kind.name, room, ALONE], known[kind.name, room, TWO_GBIT]
        cells = [kind.name, room, _speed(alone, "one box"), _speed(cable, "whole layers")]
        cells += [_speed(row, "experts") for row in with_links]
        cells.append(answer(dict(zip(LINKS, map(gain, with_links), strict=True))))
        card = next((k for k in KINDS if k.has_card and k.gbytes_per_s == kind.gbytes_per_s), None)
        instead = "" if card is None or kind.has_card else _without(known[card.name, room, TWO_GBIT])
        lines.append(f"| {' | '.join([*cells, instead])} |")
    return "\n".join(lines)


def answer(gains: Mapping[str, float]) -> str:
    """Over which links it pays, the slowest first, and by how much."""
    paid = {link: times for link, times in gains.items() if verdict(times) == "yes"}
    if not paid:
        return "no"
    least, most = (f"{times - 1:+.0%}" for times in (min(paid.values()), max(paid.values())))
    by = least if least == most else f"{least} to {most}"
    return f"from {next(iter(paid))} on: {by}"


def _speed(row: Row, family: str) -> str:
    return f"{row[f'{family} tokens/s']:.1f} ({row[f'{family} drafts']})"


def _without(row: Row) -> str:
    """Of the best without pooling."""
    family = max(("one box", "whole layers"), key=lambda name: float(row[f"{name} tokens/s"]))
    return _speed(row, family)


def draw(rows: list[dict[str, Any]]) -> None:
    """The gain of pooled experts over the best without, by link."""
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
            mine = {
                (row["home"], row["second_box"]): gain(row)
                for row in rows
                if (row["link"], row["context"]) == (link, context)
            }
            lines = [places.index(place) for place in mine]
            panel.plot(list(mine.values()), lines, marker, ms=6, color=colour, label=link)
        panel.set_title(f"context {context:,}", loc="left", size=9)
        panel.set_xscale("log")
        plain_ticks(panel.xaxis, (0.3, 0.5, 0.7, 1, 1.5, 2))
        panel.set_xlabel("pooled experts: times as fast as the best of one box and whole layers", size=9)
        panel.grid(alpha=0.25, axis="x")
    axes[0].set_yticks(range(len(places)), [f"{home}\n{room}" for home, room in places], size=8)
    axes[0].invert_yaxis()
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        title="Grey: no difference that we can promise",
        loc="outside upper center",
        ncols=len(LINKS),
        frameon=False,
        fontsize=9,
        title_fontsize=9,
    )
    save(figure, rows, "homes")


if __name__ == "__main__":
    main()
