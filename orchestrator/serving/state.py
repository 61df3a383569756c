"""What a server is doing, as its page, its metrics and `potluck top` show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

Histogram = tuple[tuple[float | None, int], ...]
"""(upper edge, count) from the lowest on; the last has None for its edge, since there is nothing above it.

A count is of what lies above the edge before and not above its own.
"""


@dataclass(frozen=True, slots=True)
class RequestState:
    """One request that has not ended.

    Attributes:
        place: "waiting" for its turn, "reading" its prompt, "writing", or "paused" for want of memory.
        age_s: since it came.
        prompt_tokens, computed_tokens: of the prompt, and those of them that are read.
        drafted, accepted: drafts of its steps by position.
    """

    number: int
    client: str
    place: Literal["waiting", "reading", "writing", "paused"]
    age_s: float
    prompt_tokens: int
    computed_tokens: int
    cached_tokens: int
    generated_tokens: int
    max_tokens: int
    drafted: tuple[int, ...] = ()
    accepted: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class BoxState:
    """A worker, or "head" for this process.

    Attributes:
        standing: "serving", "late", "lost" and the like, in a word.
        load: share of the computed (token, expert) pairs.
        round_trip_s: last measured to it; None where nobody measured, as for the head.
    """

    name: str
    node: str
    standing: str
    experts: int
    num_bytes: int
    budget_bytes: int
    load: float
    round_trip_s: float | None = None


@dataclass(frozen=True, slots=True)
class Totals:
    """Counted since the server began.

    Attributes:
        finished: answers by finish reason; refused: requests by kind.
        steps: passes of the model; step_parts_s: seconds of them by part (see StepTimer).
        first_token_s: seconds to the first token of requests; between_tokens_s, request_s: the same of gaps
            between a request's steps, and of whole requests.
        first_token_sum_s, between_tokens_sum_s, request_sum_s: the sums of all that is counted in these.
    """

    finished: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    drafted: tuple[int, ...] = ()
    accepted: tuple[int, ...] = ()
    steps: int = 0
    step_s: float = 0.0
    step_parts_s: Mapping[str, float] = field(default_factory=dict)
    first_token_s: Histogram = ()
    between_tokens_s: Histogram = ()
    request_s: Histogram = ()
    first_token_sum_s: float = 0.0
    between_tokens_sum_s: float = 0.0
    request_sum_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to the cluster or the server; `age_s`: since then."""

    age_s: float
    text: str


@dataclass(frozen=True, slots=True)
class ServerState:
    """All at one moment.

    Attributes:
        tokens_per_s: written over the last ten seconds, all requests together.
        kv_used_bytes, kept_bytes, kv_budget_bytes: of keys and values, and of rows that wait for MTP
            layers: running, kept for later, and allowed.
        places: of each MoE layer and expert, the place in `boxes` of the box that computes it, -1 for none.
        heat: of each MoE layer and expert, how often tokens chose it of late, in shares of the layer's.
        lack: why the cluster cannot compute now; "" where it can.
    """

    model: str
    up_s: float
    tokens_per_s: float
    waiting: int
    running: int
    requests: Sequence[RequestState]
    boxes: Sequence[BoxState]
    totals: Totals
    kv_used_bytes: int
    kept_bytes: int
    kv_budget_bytes: int
    moe_layers: Sequence[int]
    places: Sequence[Sequence[int]]
    heat: Sequence[Sequence[float]]
    events: Sequence[Event]
    lack: str = ""


class StateSource(Protocol):
    """Who knows it: the engine."""

    def state(self) -> ServerState:
        """As it is now; from any thread, in less than a millisecond or two."""
        ...
