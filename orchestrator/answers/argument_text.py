"""The arguments of an old call, which clients send back as JSON text that may be damaged."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from orchestrator.answers.literals import MOST_DEPTH, parse_literal
from orchestrator.answers.tool_schema import ToolSchema

Json = Any

UNREADABLE = "arguments"
"""The name under which a text is kept that is no object and cannot be made one."""
_CLOSING = {"[": "]", "{": "}"}
_MOST_TRIES = 4


def read_arguments(arguments: Json, tool: ToolSchema | None) -> dict[str, Json]:
    """A call's arguments as the mapping that templates render.

    A text is read as JSON or Python's literals, and once more if that gives a text. One that breaks off is
    closed there; a name that has no value yet is left out. What is no object after that is kept as it is,
    under the name `UNREADABLE`, so that the model sees what was there.

    Args:
        arguments: a mapping, its text, or nothing.
        tool: types values that are texts where no text is allowed; None for a tool that is not known.
    """
    found = _mapping(arguments)
    return found if tool is None else tool.typed(found)


def _mapping(arguments: Json) -> dict[str, Json]:
    if isinstance(arguments, Mapping):
        return {str(key): value for key, value in arguments.items()}
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        return {}
    if not isinstance(arguments, str):
        return {UNREADABLE: arguments}
    value: Json = arguments
    # Twice: some clients write the text of a text.
    for _ in range(2):
        if isinstance(value, str):
            try:
                value = parse_literal(value.strip())
            except ValueError:
                break
    if value is None:
        return {}
    if isinstance(value, str):
        value = _closed(value.strip())
    return value if isinstance(value, dict) else {UNREADABLE: arguments}


def _closed(text: str) -> Json:
    """The object whose text breaks off, without a name that has no value; None if there is none."""
    if not text.startswith("{"):
        return None
    # The latest places where a value may have ended, and what closes the text there.
    ends: deque[tuple[int, str]] = deque(maxlen=_MOST_TRIES)
    closing: list[str] = []
    in_text = escaped = False
    for at, character in enumerate(text):
        if in_text:
            in_text = escaped or character != '"'
            escaped = character == "\\" and not escaped
            continue
        in_text = character == '"'
        if character == ",":
            ends.append((at, "".join(reversed(closing))))
        elif character in _CLOSING:
            closing.append(_CLOSING[character])
            ends.append((at + 1, "".join(reversed(closing))))
        elif character in _CLOSING.values() and (not closing or closing.pop() != character):
            return None
        if len(closing) > MOST_DEPTH:
            return None
    end = len(text) - 1 if escaped else len(text)
    ends.append((end, ('"' if in_text else "") + "".join(reversed(closing))))
    for end, missing in reversed(ends):
        try:
            return parse_literal(text[:end] + missing)
        except ValueError:
            continue
    return None
