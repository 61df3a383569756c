"""How much of a card's memory stays free, whatever a run could use."""

from __future__ import annotations

LEAST_MARGIN_BYTES = 512_000_000
MARGIN_SHARE = 0.05


def vram_margin_bytes(free_bytes: int) -> int:
    """Of so many bytes that are free: what other programs, the screen and the driver take next."""
    return max(LEAST_MARGIN_BYTES, round(MARGIN_SHARE * free_bytes))


def usable_vram_bytes(free_bytes: int) -> int:
    """What a run may take, at least 0."""
    return max(0, free_bytes - vram_margin_bytes(free_bytes))
