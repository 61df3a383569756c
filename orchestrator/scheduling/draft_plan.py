"""What depths of drafts were found to be best, and for whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from orchestrator.scheduling.draft_gains import DraftGains


class Asked(NamedTuple):
    """What depths are wanted for: `other_rows` of prompts, and at most `most_rows` of drafts."""

    sequences: tuple[int, ...]
    other_rows: int
    most_rows: int


@dataclass(frozen=True, slots=True)
class DraftPlan:
    """The best depths, and the seconds of a step that they give.

    Attributes:
        takes_in: whether rows wait for those who draft.
        unit_s: of a step without drafts and without prompts.
    """

    asked: Asked
    gains: DraftGains
    best: dict[int, int]
    best_s: float
    takes_in: bool
    unit_s: float

    @property
    def is_drafting(self) -> bool:
        """Whether it has any drafts."""
        return any(self.best.values())

    @property
    def best_rate(self) -> float:
        """Expected tokens a second."""
        return self.gains.tokens(self.best) / self.best_s

    @property
    def best_steps(self) -> float:
        """Steps without drafts that take as long as such a step."""
        return self.best_s / self.unit_s
