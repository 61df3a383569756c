"""What a line of a chat asks for: a message to the model, or something of the chat itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from placement.errors import InputError
from placement.files.quote import quote

Name = Literal["stats", "reset", "system", "save", "help", "quit"]

HELP: dict[Name, tuple[str, str]] = {
    "stats": ("", "say how fast answers came and what they took"),
    "reset": ("", "forget what was said; the system text stays"),
    "system": ("TEXT", "put another system text before the conversation, or none"),
    "save": ("FILE", "write the conversation as JSON"),
    "help": ("", "show these lines"),
    "quit": ("", "end, as does the end of the input"),
}
"""Of each command: what stands behind it, and what it does."""

_NEEDS_TEXT = {"save"}


@dataclass(frozen=True, slots=True)
class Message:
    """A text for the model."""

    text: str


@dataclass(frozen=True, slots=True)
class Command:
    """Something of the chat itself. `text`: what stands behind its name."""

    name: Name
    text: str = ""


def read_line(line: str) -> Message | Command | None:
    """What a line asks for, None for an empty one. A message that begins with `/` is written with two.

    Raises:
        InputError: there is no such command, or something is missing behind it or too much.
    """
    line = line.strip()
    if not line.startswith("/"):
        return Message(line) if line else None
    if line.startswith("//"):
        return Message(line[1:])
    word, _, text = line[1:].partition(" ")
    text = text.strip()
    name: Name | None = next((known for known in HELP if known == word), None)
    if name is None:
        raise InputError(
            f"{quote('/' + word)}: expected {', '.join(f'/{known}' for known in HELP)}; a message that "
            "begins with / is written with //"
        )
    wanted, _ = HELP[name]
    if text and not wanted:
        raise InputError(f"/{name}: expected nothing behind it, found {quote(text)}")
    if not text and name in _NEEDS_TEXT:
        raise InputError(f"/{name}: expected {wanted} behind it")
    return Command(name, text)
