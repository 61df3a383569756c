"""A custom tool's text, read while it comes out of the JSON of its call's arguments."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from orchestrator.api.tools import INPUT, custom_text

_BEGIN = re.compile(rf'\s*{{\s*"{INPUT}"\s*:\s*"')
# Those that are complete. Two surrogates are one character.
_CHARACTERS = re.compile(
    r'(?:[^"\\]|\\[^u]|\\u(?![dD][89abAB])[0-9a-fA-F]{4}|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[0-9a-fA-F]{4})*'
)


class CustomInput:
    """One call's text. Where it is not the first argument, nothing of it is read before the call's end."""

    def __init__(self) -> None:
        self._num_read = 0
        self._unread = ""
        self._has_begun = False

    def take(self, arguments: str) -> str:
        """What a piece of the arguments adds to the text."""
        self._unread += arguments
        if not self._has_begun:
            begin = _BEGIN.match(self._unread)
            if begin is None:
                return ""
            self._unread = self._unread[begin.end() :]
            self._has_begun = True
        found = _CHARACTERS.match(self._unread)
        assert found is not None, "no character at all matches too"
        self._unread = self._unread[found.end() :]
        text: str = json.loads(f'"{found[0]}"', strict=False)
        self._num_read += len(text)
        return text

    def end(self, arguments: Mapping[str, Any]) -> str:
        """What is new in the text of a call that is complete."""
        return custom_text(arguments)[self._num_read :]
