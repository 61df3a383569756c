"""How long a request's reasoning may be: a hint when little is left, and an end when nothing is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

HINT_TEXT = "\nI have thought long enough and answer soon.\n"
"""Put into the reasoning, in the model's own voice, when little of the budget is left."""
END_TEXT = "\n</think>\n"
"""Put behind the reasoning when nothing is left."""

# A hint before so small a budget would be most of it.
_LEAST_HINTED = 256
_MOST_LEFT = 512


@dataclass(frozen=True, slots=True)
class BudgetTokens:
    """The texts of a budget as the model's tokens.

    Attributes:
        end: forced where the budget is spent; of `END_TEXT`.
        hint: forced once before that; of `HINT_TEXT`, empty for no hint.
        ends: token sequences that end reasoning on their own, those of </think> and <tool_call>.
    """

    end: tuple[int, ...]
    hint: tuple[int, ...] = ()
    ends: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Order:
    """What to do before the next token is chosen: nothing, or put these tokens behind the last one."""

    kind: Literal["go_on", "hint", "end"]
    token_ids: tuple[int, ...] = ()


GO_ON = Order("go_on")


class ReasoningBudget:
    """Counts one answer's reasoning tokens and says when to hint and when to end.

    It is told tokens that are certain, one at a time, and forced ones too. So where it speaks does not depend
    on how many drafts were verified at once: after an order, the caller throws away what it had verified
    beyond that token.

    Args:
        budget: reasoning tokens allowed, the hint's counted. 0: no reasoning, see `order`.
    """

    def __init__(self, budget: int, tokens: BudgetTokens) -> None:
        self._budget = budget
        self._tokens = tokens
        self._left_at_hint = min(_MOST_LEFT, budget // 8) if tokens.hint and budget >= _LEAST_HINTED else 0
        self._longest_end = max(map(len, tokens.ends), default=0)
        self._recent: tuple[int, ...] = ()
        self._forced: Sequence[int] = ()
        self.used = 0
        """Reasoning tokens so far."""
        self.is_over = False
        """Whether reasoning has ended; nothing is ordered after that."""

    def order(self) -> Order:
        """What to do now: to be asked once before the first token."""
        return self._end() if self._budget == 0 and not self.is_over else GO_ON

    def push(self, token_id: int) -> Order:
        """Take the next token and say what comes behind it."""
        if self.is_over:
            return GO_ON
        self.used += 1
        self._recent = (*self._recent, token_id)[-self._longest_end :] if self._longest_end else ()
        if any(self._recent[-len(end) :] == end for end in self._tokens.ends if end):
            self.is_over = True
            return GO_ON
        left = self._budget - self.used
        # A hint that was begun is written to its end before anything else is ordered.
        if self._forced:
            self._forced = self._forced[1:]
            if self._forced:
                return GO_ON
        if left <= 0:
            return self._end()
        # Something has to be left behind the hint.
        if 2 * len(self._tokens.hint) < left <= self._left_at_hint:
            self._left_at_hint = 0
            self._forced = self._tokens.hint
            return Order("hint", self._tokens.hint)
        return GO_ON

    def _end(self) -> Order:
        self.is_over = True
        return Order("end", self._tokens.end)
