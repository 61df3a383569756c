"""What answers took, and how fast they came."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AnswerTokens:
    """Of one answer, as the server tells them; 0 for what it does not tell."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    reasoning: int = 0
    drafted: int = 0
    accepted: int = 0


@dataclass(frozen=True, slots=True)
class AnswerFigures:
    """Of one answer.

    Attributes:
        tokens: None of an answer that was stopped before the server told them.
        wait_s: from the question to the first piece.
        writing_s: from the first piece to the last event.
    """

    tokens: AnswerTokens | None
    wait_s: float
    writing_s: float


@dataclass(frozen=True, slots=True)
class Summary:
    """Of several answers.

    Attributes:
        answers: all of them; `told`: those whose tokens are known, which all else here is about.
        tokens_per_s: those after the first of each answer, by the time they took; None where none did.
        wait_s: the mean of all answers; None without any.
        accepted_share: drafts of the MTP layers that held; None where there were none.
    """

    answers: int
    told: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    tokens_per_s: float | None
    wait_s: float | None
    accepted_share: float | None


def summary(answers: Sequence[AnswerFigures]) -> Summary:
    """The figures of `/stats`."""
    told = [(answer.tokens, answer) for answer in answers if answer.tokens is not None]
    tokens = [one for one, _ in told]
    later_tokens = sum(max(0, one.completion - 1) for one in tokens)
    writing_s = sum(answer.writing_s for _, answer in told)
    drafted = sum(one.drafted for one in tokens)
    return Summary(
        answers=len(answers),
        told=len(told),
        prompt_tokens=sum(one.prompt for one in tokens),
        cached_tokens=sum(one.cached for one in tokens),
        completion_tokens=sum(one.completion for one in tokens),
        reasoning_tokens=sum(one.reasoning for one in tokens),
        tokens_per_s=later_tokens / writing_s if later_tokens and writing_s > 0 else None,
        wait_s=sum(answer.wait_s for answer in answers) / len(answers) if answers else None,
        accepted_share=sum(one.accepted for one in tokens) / drafted if drafted else None,
    )
