"""A predicted speed's range, as commands print it and as their JSON has it."""

from __future__ import annotations

from typing import Any

from placement.answers.prediction_range import LikelySpeed, SpeedRange
from placement.units import between

_BASES = {
    "probed": ("probed boxes", "our own runs"),
    "catalogue": ("boxes of the catalogue", "published speeds"),
    "typed": ("typed figures, which count like the catalogue's", "published speeds"),
}


def range_fields(speed: LikelySpeed | None) -> dict[str, Any] | None:
    """`range` of a JSON document: tokens/s, and what they are from."""
    if speed is None:
        return None
    return {
        "low": speed.low,
        "high": speed.high,
        "basis": speed.range.basis,
        "covers": speed.range.covers,
        "count": speed.range.count,
    }


def likely(speed: LikelySpeed) -> str:
    """Such as "33 to 47"."""
    return between(speed.low, speed.high)


def basis_sentence(figures: SpeedRange) -> str:
    """Where a range comes from that is by devices' figures alone."""
    whose, measured = _BASES[figures.basis]
    return (
        f"Likely for {whose}: about {figures.covers:.0%} of {measured} are {figures.low:.2f} to "
        f"{figures.high:.2f} times the predicted ones ({figures.count} compared)."
    )


def change(low: float, high: float) -> str:
    """Two factors: "-27% to +18%"."""
    return f"{low - 1:+.0%} to {high - 1:+.0%}"
