"""A call's arguments written as JSON text while they arrive."""

from __future__ import annotations

import json
from typing import Any

from orchestrator.answers.held_tools import HeldTool
from orchestrator.answers.tool_schema import NULLS, ArgumentType, ToolSchema

# White space in front of a text that could still become null.
_MOST_WAITING = 64


class CallWriter:
    """One call's arguments, in the order in which they come.

    The pieces that `feed`, `end` and `close` return make up the JSON text of `arguments`. A text is written
    while it comes. What has another type is written once it is complete. Of two arguments with the same name
    the first one counts, because it may have been sent already.

    Args:
        held: what the call is held to; None for a call that is free. An argument that it may not have is
            left out.

    Attributes:
        arguments: those that are complete.
        key: of the argument that comes.
    """

    def __init__(self, call_id: str, tool: ToolSchema, held: HeldTool | None = None) -> None:
        self.call_id = call_id
        self.tool_name = tool.name
        self.held = held
        self.arguments: dict[str, Any] = {}
        self.key = ""
        self._tool = tool
        self._type = ArgumentType()
        self._pieces: list[str] = []
        self._is_left_out = False
        self._is_streaming = False

    @property
    def takes_text(self) -> bool:
        """Whether the argument that comes is a text, in which tags may stand."""
        return self._type.is_text

    @property
    def is_bound(self) -> bool:
        """Whether the argument that comes follows a form, so that only its own line ends it."""
        return self.held is not None and self.held.forms.get(self.key) is not None

    @property
    def lacks(self) -> bool:
        """Whether arguments are missing that the call is held to have."""
        return self.held is not None and not self.held.required <= self.arguments.keys()

    @property
    def text(self) -> str:
        """What has come of the argument."""
        return "".join(self._pieces)

    @property
    def is_empty(self) -> bool:
        """Whether nothing of the argument has come yet."""
        return not self._pieces

    def may_follow(self, key: str) -> bool:
        """Whether an argument of this name is known and has not come yet."""
        return self._tool.has(key) and key not in self.arguments and key != self.key

    def begin(self, key: str) -> None:
        """An argument begins."""
        self.key = key
        self._type = self._tool.argument(key)
        self._pieces = []
        is_unknown = self.held is not None and key not in self.held.forms
        self._is_left_out = key in self.arguments or is_unknown
        self._is_streaming = False

    def feed(self, text: str) -> str:
        """A piece of its value."""
        self._pieces.append(text)
        if self._is_left_out:
            return ""
        if self._is_streaming:
            return _escaped(text)
        if not self._type.is_text:
            return ""
        value = "".join(self._pieces)
        if "null" in self._type.kinds and len(value) < _MOST_WAITING:
            stripped = value.strip()
            if any(null.startswith(stripped) for null in NULLS):
                return ""
        self._is_streaming = True
        return f'{self._before()}"{_escaped(value)}'

    def end(self) -> str:
        """The argument is complete."""
        if self._is_left_out:
            return ""
        text = "".join(self._pieces)
        if self._is_streaming:
            self.arguments[self.key] = text
            return '"'
        before = self._before()
        self.arguments[self.key] = self._type.value(text)
        return before + json.dumps(self.arguments[self.key], ensure_ascii=False)

    def close(self) -> str:
        """The call is complete."""
        return "}" if self.arguments else "{}"

    def _before(self) -> str:
        return f"{', ' if self.arguments else '{'}{json.dumps(self.key, ensure_ascii=False)}: "


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
