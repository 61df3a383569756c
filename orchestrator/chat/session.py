"""A conversation as it stands: what was said, what is asked for next, and what answers took. No terminal."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from orchestrator.chat.chunks import Ended, Piece, Said
from orchestrator.chat.figures import AnswerFigures, AnswerTokens

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Wishes:
    """How answers are to be made; None leaves it to the server."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    reasoning_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """What somebody said. `reasoning`: of an answer."""

    role: Literal["user", "assistant"]
    text: str
    reasoning: str = ""


@dataclass(slots=True)
class Answer:
    """One that comes, in pieces. Times are seconds of a clock that only grows."""

    asked_s: float
    reasoning: list[str] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    why: str | None = None
    tokens: AnswerTokens | None = None
    first_s: float | None = None
    last_s: float | None = None

    def take(self, said: Said, now_s: float) -> None:
        """More of it."""
        self.last_s = now_s
        if isinstance(said, Piece):
            if self.first_s is None:
                self.first_s = now_s
            (self.reasoning if said.is_reasoning else self.text).append(said.text)
        elif isinstance(said, Ended):
            self.why = said.why
        else:
            self.tokens = said.tokens

    def figures(self) -> AnswerFigures:
        first_s = self.asked_s if self.first_s is None else self.first_s
        last_s = first_s if self.last_s is None else max(first_s, self.last_s)
        return AnswerFigures(self.tokens, first_s - self.asked_s, last_s - first_s)


@dataclass(frozen=True, slots=True)
class Session:
    """All of a chat. Each change gives a new one, so that one that was broken off changes nothing."""

    model: str
    wishes: Wishes = Wishes()
    system: str | None = None
    turns: tuple[Turn, ...] = ()
    answers: tuple[AnswerFigures, ...] = ()

    def reset(self) -> Session:
        """Forget what was said. The system text and the figures stay."""
        return replace(self, turns=())

    def with_system(self, text: str) -> Session:
        """Another system text, none where it is empty."""
        return replace(self, system=text or None)

    def answered(self, question: str, answer: Answer) -> Session:
        """A question and what came of its answer, which may have been stopped."""
        turn = Turn("assistant", "".join(answer.text), "".join(answer.reasoning))
        return replace(
            self,
            turns=(*self.turns, Turn("user", question), turn),
            answers=(*self.answers, answer.figures()),
        )

    def request(self, question: str) -> Json:
        """The body that asks it, of `POST /v1/chat/completions`."""
        wishes = {
            "temperature": self.wishes.temperature,
            "top_p": self.wishes.top_p,
            "top_k": self.wishes.top_k,
            "min_p": self.wishes.min_p,
            "seed": self.wishes.seed,
            "max_completion_tokens": self.wishes.max_tokens,
            "reasoning_budget": self.wishes.reasoning_tokens,
        }
        return {
            "model": self.model,
            "messages": [*self.messages(), {"role": "user", "content": question}],
            "stream": True,
            "stream_options": {"include_usage": True},
            **{name: value for name, value in wishes.items() if value is not None},
        }

    def messages(self) -> list[Json]:
        """What was said, as the API takes it."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, *map(_message, self.turns)]

    def document(self) -> Json:
        """What `/save` writes."""
        return {"model": self.model, "messages": self.messages()}


def _message(turn: Turn) -> Json:
    message: Json = {"role": turn.role, "content": turn.text}
    return {**message, "reasoning": turn.reasoning} if turn.reasoning else message
