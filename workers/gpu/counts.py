"""What a card computed and what was copied to it, in counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class CardCounts:
    """Since the start.

    Attributes:
        own, kept, passing: (token, expert) pairs computed by experts that live on the card, by those of RAM
            that it keeps, and by those that a prompt brought.
        kept_bytes: of experts of RAM that were loaded in the background.
        passed: experts that prompts brought, and those bytes of the host link.
    """

    own: int = 0
    kept: int = 0
    passing: int = 0
    kept_bytes: int = 0
    passed: int = 0
    passed_bytes: int = 0
