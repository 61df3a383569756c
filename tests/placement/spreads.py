"""How far predictions lie from measurements, invented for tests."""

from __future__ import annotations

from placement.hardware.spread import Range, Spreads


def spreads() -> Spreads:
    """0.7 to 1.2 where nobody probed, 0.95 to 1.1 where somebody did, 5% of differences on the same boxes."""
    return Spreads(
        judged=Range(0.7, 1.2, count=40, covers=0.8),
        probed=Range(0.95, 1.1, count=20, covers=0.8),
        same_boxes=Range(1 / 1.05, 1.05, count=30, covers=0.8),
    )
