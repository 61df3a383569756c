"""Reasoning that a client keeps for us and sends back with the conversation.

Codex and Claude Code return what the model thought before a tool's result only in a field that they do not
look into. OpenAI and Anthropic encrypt it. Here whoever asks may read it anyway, so it is plain base64.
"""

from __future__ import annotations

import base64
import binascii
import hashlib

_MARK = "potluck1."


def sealed(reasoning: str) -> str:
    """A text that holds all of it."""
    return _MARK + base64.b64encode(reasoning.encode("utf-8", "replace")).decode()


def opened(text: str | None) -> str:
    """The reasoning in a text of `sealed`; empty for a text of another server."""
    if text is None or not text.startswith(_MARK):
        return ""
    try:
        return base64.b64decode(text[len(_MARK) :], validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""


def signature(reasoning: str) -> str:
    """A short mark of a text that the client has anyway. Nobody checks it: what was said is no secret."""
    return base64.b64encode(hashlib.sha256(reasoning.encode("utf-8", "replace")).digest()).decode()
