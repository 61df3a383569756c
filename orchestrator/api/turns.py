"""Turns of a conversation, as chat templates take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.api.errors import ApiError, invalid

Turn = dict[str, Any]

PICTURE_NOTE = "[There was a picture here. You cannot see pictures.]"


def said(role: str, content: str) -> Turn:
    """A turn of text."""
    return {"role": role, "content": content}


def answered(text: str, reasoning: str, calls: Sequence[Mapping[str, Any]] = ()) -> Turn:
    """A turn of the assistant. `calls`: of `call`."""
    turn = said("assistant", text)
    if reasoning:
        turn["reasoning_content"] = reasoning
    if calls:
        turn["tool_calls"] = list(calls)
    return turn


def call(call_id: str, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A call in the assistant's turn."""
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": dict(arguments)}}


def result(call_id: str, content: str) -> Turn:
    """What a tool gave back."""
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def conversation(turns: Sequence[Turn], field: str) -> tuple[Turn, ...]:
    """Checked turns; those of the system at the beginning are one, since templates know one.

    Raises:
        ApiError: there are none to answer, or a result answers no call.
    """
    leading = 0
    while leading < len(turns) and turns[leading]["role"] == "system":
        leading += 1
    if leading == len(turns):
        raise invalid(field, "there is nothing to answer, expected a message of the user")
    _check_calls(turns, field)
    system = "\n\n".join(turn["content"] for turn in turns[:leading] if turn["content"])
    first = [said("system", system)] if system else []
    return (*first, *turns[leading:])


def text_only(kind: str, field: str) -> ApiError:
    """A part of a message that is no text."""
    return invalid(field, f"{kind} is not supported: the model reads text")


def _check_calls(turns: Sequence[Turn], field: str) -> None:
    called: set[str] = set()
    for turn in turns:
        called |= {made["id"] for made in turn.get("tool_calls", ())}
        if turn["role"] == "tool" and turn["tool_call_id"] not in called:
            raise invalid(
                field, f"there is a result of {turn['tool_call_id'][:50]!r}, but no such call before it"
            )
