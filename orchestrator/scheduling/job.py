"""One request on its way: numbers alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from orchestrator.model.rows_behind import LayerBounds, RowsBehind


@dataclass(frozen=True, slots=True)
class SequenceRequest:
    """What the scheduler is told of a request.

    Attributes:
        sequence: its number, given to no other one before or after.
        max_tokens: at most; None for as many as there is room for, which it gets too where it asks for more.
    """

    sequence: int
    client: str
    prompt_tokens: int
    max_tokens: int | None = None


Place = Literal["waiting", "paused", "running"]


@dataclass(slots=True, eq=False)
class Job:
    """A request that was taken.

    Attributes:
        arrived: its place among all that came.
        admitted: its place among all that were let in; kept through a pause for want of memory.
        computed: tokens whose keys and values are held.
        charged: tokens of the prompt that its client has paid; what is computed again is free.
        turn: tokens that it got since it was let in.
        layers: see `Advance`; () where it holds nothing.
        may_draft: see `Advance`; of a sequence that is decoded.
    """

    sequence: int
    client: str
    prompt_tokens: int
    max_tokens: int
    arrived: int
    place: Place = "waiting"
    admitted: int = 0
    generated: int = 0
    computed: int = 0
    charged: int = 0
    turn: int = 0
    layers: LayerBounds = ()
    may_draft: bool = False

    @property
    def tokens(self) -> int:
        """Prompt and answer so far."""
        return self.prompt_tokens + self.generated

    @property
    def remaining(self) -> int:
        """Tokens that it may still get."""
        return self.max_tokens - self.generated

    @property
    def behind(self) -> RowsBehind:
        """Rows that each MTP layer would take in before it drafts for it."""
        return RowsBehind(self.computed, self.layers)

    @property
    def to_prefill(self) -> int:
        """Tokens to compute before it is decoded: of its prompt, or all but the newest after a pause."""
        return max(0, self.tokens - (self.generated > 0) - self.computed)

    def positions(self, spare_tokens: int) -> int:
        """That it holds when it has got so many tokens more, at most; it never needs more than its last."""
        return min(self.prompt_tokens + self.max_tokens, self.tokens + spare_tokens)
