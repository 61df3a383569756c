"""What a chunk of a streamed chat completion says; what comes is not trusted."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from orchestrator.chat.figures import AnswerTokens
from placement.errors import AnswerLost, NotServed
from placement.files.quote import one_line, quote

DONE = "[DONE]"
"""The data of a stream's last event."""

_MOST_TOKENS = 10**12


@dataclass(frozen=True, slots=True)
class Piece:
    """More of an answer, or of the reasoning before it."""

    text: str
    is_reasoning: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """The answer has ended. `why`: as docs/api.md names it, "stop" where it said all it had to say."""

    why: str


@dataclass(frozen=True, slots=True)
class Told:
    """What the answer took."""

    tokens: AnswerTokens


Said = Piece | Ended | Told


def read_chunk(data: str) -> list[Said]:
    """What an event of the stream says, [] of what no chat shows.

    Raises:
        AnswerLost: the server says that the answer broke off.
        NotServed: the event is no chunk.
    """
    try:
        chunk = json.loads(data)
    except (ValueError, RecursionError):
        raise _unexpected(data) from None
    if not isinstance(chunk, dict):
        raise _unexpected(data)
    if "error" in chunk:
        raise AnswerLost(f"the answer broke off: {error_text(chunk) or 'the server does not say why'}")
    choices = chunk.get("choices")
    if not isinstance(choices, list):
        raise _unexpected(data)
    said = [one for choice in choices[:1] for one in _choice(choice)]
    if (tokens := _tokens(chunk.get("usage"))) is not None:
        said.append(Told(tokens))
    return said


def error_text(document: Any) -> str:
    """The message of an error as OpenAI's API shapes it, in one line; "" where there is none."""
    error = document.get("error") if isinstance(document, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return one_line(message) if isinstance(message, str) else ""


def error_code(document: Any) -> Any:
    """The code of an error as OpenAI's API shapes it, None where there is none."""
    error = document.get("error") if isinstance(document, dict) else None
    return error.get("code") if isinstance(error, dict) else None


def _choice(choice: Any) -> list[Said]:
    if not isinstance(choice, dict):
        raise _unexpected(choice)
    said: list[Said] = []
    delta = choice.get("delta")
    if isinstance(delta, dict):
        # Some servers know the one name, some the other; ours sends both.
        reasoning = delta.get("reasoning") or delta.get("reasoning_content")
        if isinstance(reasoning, str) and reasoning:
            said.append(Piece(reasoning, is_reasoning=True))
        content = delta.get("content")
        if isinstance(content, str) and content:
            said.append(Piece(content))
    why = choice.get("finish_detail") or choice.get("finish_reason")
    if isinstance(why, str):
        said.append(Ended(one_line(why)))
    return said


def _tokens(usage: Any) -> AnswerTokens | None:
    if not isinstance(usage, dict):
        return None
    prompt = _part(usage, "prompt_tokens_details")
    completion = _part(usage, "completion_tokens_details")
    return AnswerTokens(
        prompt=_number(usage, "prompt_tokens"),
        cached=_number(prompt, "cached_tokens"),
        completion=_number(usage, "completion_tokens"),
        reasoning=_number(completion, "reasoning_tokens"),
        drafted=_number(completion, "drafted_tokens"),
        accepted=_number(completion, "accepted_tokens"),
    )


def _part(document: dict[str, Any], name: str) -> dict[str, Any]:
    found = document.get(name)
    return found if isinstance(found, dict) else {}


def _number(document: dict[str, Any], name: str) -> int:
    """0 where it is not told."""
    found = document.get(name, 0)
    if found is None:
        return 0
    if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found <= _MOST_TOKENS:
        raise NotServed(f"the server sent usage.{name} {quote(found)}: expected a number of tokens")
    return found


def _unexpected(found: object) -> NotServed:
    return NotServed(f"the server sent {quote(found)}: expected a chunk of a chat completion")
