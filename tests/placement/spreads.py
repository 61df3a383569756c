"""How far predictions lie from measurements, invented for tests."""

from __future__ import annotations

from placement.hardware.spread import Spread, Spreads


def spreads() -> Spreads:
    """0.7 to 1.2 where nobody probed, 0.95 to 1.1 where somebody did, 5% of differences on the same boxes."""
    return Spreads(
        judged=Spread(low=0.7, high=1.2, count=40, covers=0.8, source="a test"),
        probed=Spread(low=0.95, high=1.1, count=20, covers=0.8, source="a test"),
        same_boxes=Spread(low=1 / 1.05, high=1.05, count=30, covers=0.8, source="a test"),
    )
