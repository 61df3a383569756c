"""What depths of drafts were found to be best, and for whom."""

from __future__ import annotations

from dataclasses import dataclass, field
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
        is_drafting: whether it has any drafts.
        num_drafts: of all sequences together.
        best_steps: steps without drafts that take as long as such a step.
    """

    asked: Asked
    gains: DraftGains
    best: dict[int, int]
    best_s: float
    takes_in: bool
    unit_s: float
    is_drafting: bool = field(init=False)
    num_drafts: int = field(init=False)
    best_steps: float = field(init=False)

    def __post_init__(self) -> None:
        # Every step asks.
        object.__setattr__(self, "num_drafts", sum(self.best.values()))
        object.__setattr__(self, "is_drafting", self.num_drafts > 0)
        object.__setattr__(self, "best_steps", self.best_s / self.unit_s)

    def holds_for(self, asked: Asked) -> bool:
        """Whether nobody came since it was made, and there is room for as many drafts."""
        return asked.most_rows >= self.num_drafts and self.best.keys() >= set(asked.sequences)

    @property
    def best_rate(self) -> float:
        """Expected tokens a second."""
        return self.gains.tokens(self.best) / self.best_s
