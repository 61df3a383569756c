"""What the gallery's scripts share: where figures go, how they look, and the numbers behind them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter
from PIL import Image

GALLERY = Path(__file__).resolve().parents[2] / "docs" / "studies"
COLOURS = 64


def plain_ticks(axis: Axis, ticks: Sequence[float]) -> None:
    """Label a logarithmic axis at `ticks`, with plain numbers in place of powers of ten."""
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())


def save(figure: Figure, rows: Sequence[Mapping[str, object]], name: str) -> None:
    """Write the figure as PNG and the numbers behind it as CSV; the same bytes for the same rows.

    Not SVG: the hundreds of numbers in a map make that five times as large.
    """
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=100, metadata={"Software": None})
    plt.close(figure)
    picture = Image.open(drawn).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    picture.save(GALLERY / f"{name}.png", optimize=True)
    with (GALLERY / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    print(f"wrote {GALLERY / name}.png and .csv")


def read_rows(name: str) -> list[dict[str, Any]]:
    """The rows that `save` wrote, numbers as int or float."""
    with (GALLERY / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return [{key: _value(text) for key, text in row.items()} for row in csv.DictReader(file)]


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
