"""What the scheduler orders, and what it is told of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from orchestrator.logprobs import RowLogprob
from orchestrator.model.rows_behind import LayerBounds

Ended = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Decode:
    """A sequence's newest token is computed, and so many drafts behind it are made and verified."""

    sequence: int
    drafts: int = 0


@dataclass(frozen=True, slots=True)
class Prefill:
    """So many more of a sequence's tokens are computed; behind the last of a prompt a token is chosen."""

    sequence: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Dropped:
    """A sequence that the scheduler gives up.

    Attributes:
        kind: "unavailable" for a request that waited in vain, "lost" for an answer that had begun.
        retry_after_s: when it may be worth another try.
    """

    sequence: int
    kind: Literal["unavailable", "lost"]
    message: str
    retry_after_s: float


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One pass of the model over rows of several sequences.

    Attributes:
        decode, prefill: a sequence is in one of them at most.
        pause: sequences that give back their keys and values before the pass; they are computed again later.
        dropped: sequences that are over.
        keeps_rows: whether sequences keep their rows for drafts, which may be wanted soon.
    """

    decode: tuple[Decode, ...] = ()
    prefill: tuple[Prefill, ...] = ()
    pause: tuple[int, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    keeps_rows: bool = True

    @property
    def rows(self) -> int:
        """Of the pass."""
        return sum(1 + part.drafts for part in self.decode) + self.prefill_rows

    @property
    def prefill_rows(self) -> int:
        """Those of prompts."""
        return sum(part.tokens for part in self.prefill)

    @property
    def sequences(self) -> tuple[int, ...]:
        """All whose rows are in the pass."""
        return (*(part.sequence for part in self.decode), *(part.sequence for part in self.prefill))


@dataclass(frozen=True, slots=True)
class Advance:
    """What a step did to one sequence.

    Attributes:
        tokens: that became part of it, in order; none while its prompt is computed.
        drafted, accepted: its drafts in this step, and those of them that became tokens.
        ended: why it got its last token, None while it goes on.
        held: tokens whose keys and values it holds now.
        logprobs: of its tokens, where it wants them.
        layers: of each MTP layer, the slots that it has, and the most rows that it would compute; see
            `RowsBehind`.
        may_draft: whether it has the rows that drafts take.
    """

    sequence: int
    tokens: tuple[int, ...] = ()
    drafted: int = 0
    accepted: int = 0
    ended: Ended | None = None
    held: int = 0
    logprobs: tuple[RowLogprob, ...] = ()
    layers: LayerBounds = ()
    may_draft: bool = True


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What a step did.

    Attributes:
        advances: of each sequence of the plan.
        drafting_s: the MTP layers' part of the time that the step took.
        drafting_rows: that waited for the MTP layers; of each sequence, for the layer with the most.
        prefill_rows: of prompts, that were computed; fewer than planned where their text was kept.
    """

    advances: tuple[Advance, ...]
    drafting_s: float = 0.0
    drafting_rows: int = 0
    prefill_rows: int = 0
    by_sequence: dict[int, Advance] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_sequence", {advance.sequence: advance for advance in self.advances})
