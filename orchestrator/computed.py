"""Where a run's experts were computed, and what came to cards meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from workers.disk.tier import DiskTier
from workers.gpu.tier import VramTier
from workers.tiers import ExpertTier


@dataclass(frozen=True, slots=True)
class Computed:
    """(token, expert) pairs by where they were computed, the first five by this process.

    Attributes:
        vram: on cards, by experts that live there.
        vram_cache: on cards, by experts of RAM that are kept there too.
        vram_passing: on cards, by experts of RAM that a prompt brought.
        ram: by the CPU, also what a lost card had.
        disk: by experts on a disk, or in its cache.
        elsewhere: by other processes.
    """

    vram: int = 0
    vram_cache: int = 0
    vram_passing: int = 0
    ram: int = 0
    disk: int = 0
    elsewhere: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self._values())

    def __add__(self, other: Computed) -> Computed:
        return Computed(*(a + b for a, b in zip(self._values(), other._values(), strict=True)))

    def __sub__(self, other: Computed) -> Computed:
        return Computed(*(a - b for a, b in zip(self._values(), other._values(), strict=True)))

    def _values(self) -> tuple[int, ...]:
        return tuple(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True, slots=True)
class Copied:
    """What came to this process's cards from RAM.

    Attributes:
        background_bytes: of experts that are kept, loaded while others were computed.
        prompt_experts, prompt_bytes: that prompts brought.
        crossover_rows: from so many rows on a copy pays; None where it never does, or nobody measured.
    """

    background_bytes: int = 0
    prompt_experts: int = 0
    prompt_bytes: int = 0
    crossover_rows: int | None = None


def computed_so_far(tiers: Sequence[ExpertTier], here: int, elsewhere: int) -> Computed:
    """Since the start of a run.

    Args:
        tiers: of this process.
        here, elsewhere: pairs asked of this process and of others.
    """
    cards = [tier.counts for tier in tiers if isinstance(tier, VramTier)]
    own, kept = sum(card.own for card in cards), sum(card.kept for card in cards)
    passing = sum(card.passing for card in cards)
    disk = sum(tier.counts.choices for tier in tiers if isinstance(tier, DiskTier))
    # Requests that were begun twice may be counted by the tier alone.
    in_ram = max(0, here - own - kept - passing - disk)
    return Computed(own, kept, passing, in_ram, disk, elsewhere)


def copied_so_far(tiers: Sequence[ExpertTier]) -> Copied:
    """Since the start of a run."""
    cards = [tier for tier in tiers if isinstance(tier, VramTier)]
    return Copied(
        sum(card.counts.kept_bytes for card in cards),
        sum(card.counts.passed for card in cards),
        sum(card.counts.passed_bytes for card in cards),
        min((rows for card in cards if (rows := card.beside.crossover_rows) is not None), default=None),
    )
