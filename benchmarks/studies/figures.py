"""What the gallery's scripts share: where figures go, and how they look."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

GALLERY = Path(__file__).resolve().parents[2] / "docs" / "studies"


def plain_ticks(axis: Axis, ticks: Sequence[float]) -> None:
    """Label a logarithmic axis at `ticks`, with plain numbers in place of powers of ten."""
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())


def save(figure: Figure, rows: Sequence[Mapping[str, object]], name: str) -> None:
    """The figure as SVG and the numbers behind it as CSV; the same bytes for the same rows."""
    with plt.rc_context({"svg.hashsalt": "potluck", "svg.fonttype": "path"}):
        figure.savefig(GALLERY / f"{name}.svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    with (GALLERY / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    print(f"wrote {GALLERY / name}.svg and .csv")
