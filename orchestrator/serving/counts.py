"""What a server counts."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest

from orchestrator.serving.state import Histogram, Totals

_EDGES_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
_WINDOW_S = 10.0


class Seconds:
    """Counts of seconds by upper edge; what is above all edges is in the last, infinite one."""

    def __init__(self) -> None:
        self.sum_s = 0.0
        self._counts = [0] * (len(_EDGES_S) + 1)

    def add(self, seconds: float) -> None:
        self._counts[bisect_left(_EDGES_S, seconds)] += 1
        self.sum_s += seconds

    def rows(self) -> Histogram:
        """As the state has them."""
        return tuple(zip((*_EDGES_S, None), self._counts, strict=True))


@dataclass(slots=True)
class Counts:
    """Since the server began; one thread counts."""

    first_token: Seconds = field(default_factory=Seconds)
    between_tokens: Seconds = field(default_factory=Seconds)
    request: Seconds = field(default_factory=Seconds)
    _finished: Counter[str] = field(default_factory=Counter)
    _refused: Counter[str] = field(default_factory=Counter)
    _prompt_tokens: int = 0
    _cached_tokens: int = 0
    _generated_tokens: int = 0
    _drafted: list[int] = field(default_factory=list)
    _accepted: list[int] = field(default_factory=list)
    _steps: int = 0
    _step_s: float = 0.0
    _recent: deque[tuple[float, int]] = field(default_factory=deque)

    def start(self, prompt_tokens: int, cached_tokens: int) -> None:
        """A prompt is taken in hand."""
        self._prompt_tokens += prompt_tokens
        self._cached_tokens += cached_tokens

    def finish(self, reason: str) -> None:
        """An answer ended."""
        self._finished[reason] += 1

    def refuse(self, kind: str, count: int = 1) -> None:
        """So many requests were not taken."""
        self._refused[kind] += count

    def step(self, took_s: float) -> None:
        """A pass of the model."""
        self._steps += 1
        self._step_s += took_s

    def tokens(self, count: int, drafted: int, accepted: int, now_s: float) -> None:
        """Tokens of an answer, and how many drafts of its step were made and held."""
        self._generated_tokens += count
        if count:
            self._recent.append((now_s, count))
        if drafted:
            made = [1] * drafted
            held = [1] * accepted
            self._drafted = [a + b for a, b in zip_longest(self._drafted, made, fillvalue=0)]
            self._accepted = [a + b for a, b in zip_longest(self._accepted, held, fillvalue=0)]

    def tokens_per_s(self, now_s: float) -> float:
        """Over the last seconds."""
        while self._recent and self._recent[0][0] < now_s - _WINDOW_S:
            self._recent.popleft()
        return sum(count for _, count in self._recent) / _WINDOW_S

    def totals(self, step_parts_s: Mapping[str, float]) -> Totals:
        """All that was counted."""
        return Totals(
            finished=dict(self._finished),
            refused=dict(self._refused),
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            generated_tokens=self._generated_tokens,
            drafted=tuple(self._drafted),
            accepted=tuple(self._accepted),
            steps=self._steps,
            step_s=self._step_s,
            step_parts_s=dict(step_parts_s),
            first_token_s=self.first_token.rows(),
            between_tokens_s=self.between_tokens.rows(),
            request_s=self.request.rows(),
            first_token_sum_s=self.first_token.sum_s,
            between_tokens_sum_s=self.between_tokens.sum_s,
            request_sum_s=self.request.sum_s,
        )
