"""Shows answers while they come: on a terminal with their reasoning, else their text alone."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import TextIO

from orchestrator.chat.chunks import Piece

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_KEPT = "\n\t"


@dataclass(slots=True)
class Screen:
    """Where answers go.

    Attributes:
        is_terminal: reasoning is shown, too, and dim. What would move the cursor or colour the screen is not.
        is_silent: nothing is shown.
    """

    out: TextIO
    is_terminal: bool
    is_silent: bool = False
    _shown: Piece | None = None

    def show(self, piece: Piece) -> None:
        """More of an answer."""
        if self.is_silent or (piece.is_reasoning and not self.is_terminal):
            return
        if self._shown is not None and self._shown.is_reasoning != piece.is_reasoning:
            self._write("\n" if self._shown.text.endswith("\n") else "\n\n")
        self._shown = piece
        text = visible(piece.text) if self.is_terminal else piece.text
        self._write(f"{_DIM}{text}{_PLAIN}" if piece.is_reasoning else text)

    def end(self) -> None:
        """The answer has ended, or was stopped."""
        if self._shown is not None and not self._shown.text.endswith("\n"):
            self._write("\n")
        self._shown = None

    def _write(self, text: str) -> None:
        encoding = self.out.encoding or "utf-8"
        self.out.write(text.encode(encoding, "replace").decode(encoding))
        self.out.flush()


def visible(text: str) -> str:
    """`text` without what a terminal would take for orders."""
    return "".join(
        c if c in _KEPT or unicodedata.category(c) != "Cc" else "\N{REPLACEMENT CHARACTER}" for c in text
    )
