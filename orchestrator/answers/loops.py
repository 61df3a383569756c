"""Text that repeats itself: found early, broken gently, and in the end stopped."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

MOST_PERIOD = 1024
"""Tokens after which a text has to come again to be found."""
# So many tokens that were there before say at which distance to look. Fewer would be found everywhere.
_GRAM = 8
# Distances that are followed at once: lines may repeat within a paragraph that repeats.
_MOST_REPEATS = 3


@dataclass(frozen=True, slots=True)
class Limits:
    """How much repetition is a loop.

    Tables, lists of zeros and drawn lines repeat too, so a loop is both long and has gone round often.

    Attributes:
        tokens: so many in a row that each equal the one a period before.
        rounds: so many periods after the first one.
    """

    tokens: int
    rounds: int

    def of(self, period: int) -> int:
        """Repeated tokens that make a loop."""
        return max(self.tokens, self.rounds * period)


IN_REASONING = Limits(tokens=384, rounds=4)
IN_ANSWER = Limits(tokens=1024, rounds=6)
"""For answers and calls: files and data that were asked for may repeat more than thoughts do."""
MOST_BREAKS = 2
"""Times that a loop is broken before it is stopped."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do about the text so far.

    Attributes:
        kind: "break": ban `token_id` for the next token, or end the reasoning; "stop": end the answer with
            finish reason "loop".
        began: which token, counted from 0, was the first that only repeated. From there on the text is worth
            nothing to a cache. A loop that was broken and came again began where it was first found.
        token_id: would go on with the loop.
    """

    kind: Literal["fine", "break", "stop"]
    began: int = 0
    token_id: int = -1


FINE = Verdict("fine")


@dataclass(slots=True)
class _Repeat:
    """The last `run` tokens equal those a period before. `judged`: those of them that had a verdict."""

    period: int
    run: int
    judged: int = 0


class LoopDetector:
    """Watches one answer's tokens, in the order in which they are certain; drafts are not shown to it.

    It remembers `MOST_PERIOD` tokens and does the same work for each new one.
    """

    def __init__(self) -> None:
        self._num_tokens = 0
        self._tokens = [0] * (MOST_PERIOD + 1)
        self._gram: deque[int] = deque(maxlen=_GRAM)
        # The last _GRAM tokens at every place of the memory, and where each of them stood last.
        self._grams: deque[tuple[int, ...]] = deque()
        self._places: dict[tuple[int, ...], int] = {}
        self._repeats: list[_Repeat] = []
        self._breaks = 0
        self._broken_at = 0
        self._began = 0

    def push(self, token_id: int, limits: Limits = IN_ANSWER) -> Verdict:
        """Take the next token; `limits` may change from token to token."""
        self._follow(token_id)
        self._num_tokens += 1
        for repeat in self._repeats:
            limit = limits.of(repeat.period)
            if self._breaks and self._num_tokens - self._broken_at > 2 * limit:
                self._breaks = 0
            # What was broken once and comes again is believed sooner.
            if repeat.run - repeat.judged >= (limit // 2 if self._breaks else limit):
                return self._judge(repeat)
        return FINE

    def _judge(self, found: _Repeat) -> Verdict:
        if not self._breaks:
            self._began = self._num_tokens - found.run
        going_on = self._tokens[(self._num_tokens - found.period) % len(self._tokens)]
        for repeat in self._repeats:
            repeat.judged = repeat.run
        self._broken_at = self._num_tokens
        self._breaks += 1
        return Verdict("break" if self._breaks <= MOST_BREAKS else "stop", self._began, going_on)

    def _follow(self, token_id: int) -> None:
        """Note the token, and at which distances the text repeats itself."""
        at, size = self._num_tokens, len(self._tokens)
        self._tokens[at % size] = token_id
        going_on = []
        for repeat in self._repeats:
            if self._tokens[(at - repeat.period) % size] == token_id:
                repeat.run += 1
                going_on.append(repeat)
        self._repeats = going_on
        self._gram.append(token_id)
        if at + 1 < _GRAM:
            return
        gram = tuple(self._gram)
        place = self._places.get(gram)
        if place is not None and all(repeat.period != at - place for repeat in going_on):
            if len(going_on) == _MOST_REPEATS:
                going_on.remove(min(going_on, key=lambda repeat: repeat.run))
            going_on.append(_Repeat(at - place, _GRAM))
        self._places[gram] = at
        self._grams.append(gram)
        if len(self._grams) > MOST_PERIOD:
            oldest = self._grams.popleft()
            if self._places[oldest] == at - MOST_PERIOD:
                del self._places[oldest]
