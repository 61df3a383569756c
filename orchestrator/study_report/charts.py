"""Charts of a study's rows, as SVG text to be put into a page."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from placement.study.results import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999", "#000000")
_PANEL_WIDTH, _BAR_HEIGHT = 3.9, 0.26


def speed_bars(rows: Sequence[Row], clusters: Sequence[str], policies: Sequence[str]) -> str:
    """Tokens/s of every policy, one panel a cluster; what does not fit has no bar."""
    figure, panels = _panels(len(clusters), 0.75 + _BAR_HEIGHT * len(policies))
    for panel, cluster in zip(panels, clusters, strict=False):
        speeds = {row.policy: row.tokens_per_s for row in rows if row.cluster == cluster}
        for place, policy in enumerate(policies):
            speed = speeds.get(policy)
            panel.barh(place, speed or 0, color=COLOURS[place % len(COLOURS)], height=0.75)
            text = "does not fit" if speed is None else f"{speed:.3g}"
            panel.annotate(
                text, (speed or 0, place), xytext=(3, 0), textcoords="offset points", va="center", size=8
            )
        panel.set_yticks(range(len(policies)), policies, size=8)
        panel.invert_yaxis()
        panel.set_title(cluster, size=9, loc="left")
        panel.set_xlim(0, 1.22 * max([s for s in speeds.values() if s] or [1]))
        panel.set_xlabel("tokens/s, held-out text", size=8)
    return _svg(figure)


def speed_lines(rows: Sequence[Row], axis: str, clusters: Sequence[str], policies: Sequence[str]) -> str:
    """Tokens/s against `axis`, a number of each row; one panel a cluster, one line a policy."""
    figure, panels = _panels(len(clusters), 2.6)
    for panel, cluster in zip(panels, clusters, strict=False):
        for place, policy in enumerate(policies):
            points = sorted(
                (getattr(row, axis), row.tokens_per_s)
                for row in rows
                if row.cluster == cluster and row.policy == policy and row.tokens_per_s is not None
            )
            if points:
                colour = COLOURS[place % len(COLOURS)]
                panel.plot(*zip(*points, strict=True), marker="o", ms=3, lw=1.4, color=colour, label=policy)
        panel.set_title(cluster, size=9, loc="left")
        panel.set_xlabel(axis.replace("_", " "), size=8)
        panel.set_ylabel("tokens/s", size=8)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.25)
    handles = {label: h for p in panels for h, label in zip(*p.get_legend_handles_labels(), strict=True)}
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8, frameon=False
    )
    return _svg(figure)


def _panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    import matplotlib.pyplot as plt

    columns = min(count, 3)
    lines = -(-count // columns)
    figure, axes = plt.subplots(
        lines,
        columns,
        figsize=(max(_PANEL_WIDTH * columns, 5), height * lines),
        squeeze=False,
        layout="constrained",
    )
    panels: list[Axes] = list(axes.flat)
    for panel in panels[count:]:
        panel.set_visible(False)
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
    return figure, panels


def _svg(figure: Figure) -> str:
    """The picture as an <svg> element, the same text for the same rows."""
    import matplotlib.pyplot as plt

    text = io.StringIO()
    with plt.rc_context({"svg.hashsalt": "potluck", "svg.fonttype": "path"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    written = text.getvalue()
    return written[written.index("<svg") :]
