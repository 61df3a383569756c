"""Charts of a study's rows, one panel each, as SVG text to be put into a page."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.palette import OKABE_ITO

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Policies of one colour differ in marker.
_MARKERS = ("o", "s", "^")
# Inches; as wide as a telephone shows without shrinking it.
_PANEL_WIDTH, _BAR_HEIGHT, _LINES_HEIGHT = 3.7, 0.27, 2.7
_TEXT_SIZE = 9
_MOST_LEVEL_TICKS = 5


def speed_bars(title: str, speeds: Mapping[str, float | None]) -> str:
    """Tokens/s of each policy; one without (None) does not fit."""
    figure, panel = _panel(title, 0.85 + _BAR_HEIGHT * len(speeds))
    for place, speed in enumerate(speeds.values()):
        panel.barh(place, speed or 0, color=_style(place)["color"], height=0.75)
        text = "does not fit" if speed is None else three_digits(speed)
        panel.annotate(
            text, (speed or 0, place), xytext=(3, 0), textcoords="offset points", va="center", size=_TEXT_SIZE
        )
    panel.set_yticks(range(len(speeds)), list(speeds), size=_TEXT_SIZE)
    panel.invert_yaxis()
    panel.set_xlim(0, 1.25 * max([speed for speed in speeds.values() if speed], default=1))
    panel.set_xlabel("tokens/s", size=_TEXT_SIZE)
    return _svg(figure, f"{title}: tokens/s by policy")


def speed_lines(
    title: str, axis: str, ticks: Sequence[str], speeds: Mapping[str, Sequence[float | None]]
) -> str:
    """Tokens/s of each policy at each tick, None where it does not fit. Ticks stand at equal distances."""
    figure, panel = _panel(title, _LINES_HEIGHT)
    for place, line in enumerate(speeds.values()):
        values = [float("nan") if speed is None else speed for speed in line]
        # The first policy on top: lines often coincide.
        panel.plot(range(len(ticks)), values, lw=1.5, ms=4.5, zorder=2 + 1 / (1 + place), **_style(place))
    labels = [tick.replace("+", "\n+").replace(" (", "\n(") for tick in ticks]
    rotation = 45 if len(ticks) > _MOST_LEVEL_TICKS else 0
    panel.set_xticks(range(len(ticks)), labels, size=_TEXT_SIZE, rotation=rotation)
    panel.set_xlabel(axis, size=_TEXT_SIZE)
    panel.set_ylabel("tokens/s", size=_TEXT_SIZE)
    panel.set_xlim(-0.3, len(ticks) - 0.7)
    panel.set_ylim(bottom=0)
    panel.grid(alpha=0.25)
    return _svg(figure, f"{title}: tokens/s by {axis}")


def legend(policies: Sequence[str]) -> str:
    """Which colour and marker of `speed_lines` is whose."""
    figure, panel = _panel("", 0.2 + 0.19 * -(-len(policies) // 2))
    panel.set_axis_off()
    for place, policy in enumerate(policies):
        panel.plot([], [], lw=1.5, ms=4.5, label=policy, **_style(place))
    panel.legend(loc="center", ncols=2, fontsize=_TEXT_SIZE, frameon=False)
    return _svg(figure, f"legend: {', '.join(policies)}")


def three_digits(number: float) -> str:
    """Such as 1.95, 18.0 or 233."""
    return f"{number:.{0 if number >= 99.95 else 1 if number >= 9.995 else 2}f}"


def _style(place: int) -> dict[str, Any]:
    return {
        "color": OKABE_ITO[place % len(OKABE_ITO)],
        "marker": _MARKERS[place // len(OKABE_ITO) % len(_MARKERS)],
    }


def _panel(title: str, height: float) -> tuple[Figure, Axes]:
    import matplotlib.pyplot as plt

    figure, panel = plt.subplots(figsize=(_PANEL_WIDTH, height), layout="constrained")
    panel.set_title(title, size=_TEXT_SIZE + 1, loc="left")
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=_TEXT_SIZE)
    return figure, panel


def _svg(figure: Figure, description: str) -> str:
    """The picture as an <svg> element, the same text for the same rows."""
    import matplotlib.pyplot as plt

    text = io.StringIO()
    with plt.rc_context({"svg.hashsalt": "potluck", "svg.fonttype": "path"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Title": description})
    plt.close(figure)
    written = text.getvalue()
    return written[written.index("<svg") :]
