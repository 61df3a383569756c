"""Where a text that is taken apart while it arrives is read next."""

from __future__ import annotations

import re
from dataclasses import dataclass

from orchestrator.answers.tags import Window

_LINE_OR_TAG = re.compile(r"[\n<]")


@dataclass(slots=True)
class Cursor:
    """A place in such a text, moved by whoever reads it.

    Attributes:
        window: the text from a place before this one on.
        at: where the next character stands in the window.
        window_start: where the window stands in the whole text.
        is_cut: whether the text was cut off, as by a limit of tokens.
    """

    window: Window
    at: int = 0
    window_start: int = 0
    is_cut: bool = False

    @property
    def place(self) -> int:
        """Where the next character stands in the whole text."""
        return self.window_start + self.at

    @property
    def rest(self) -> str:
        """The text that is still to be read."""
        return self.window.text[self.at :]

    @property
    def is_at_end(self) -> bool:
        """Whether nothing is to be read until more text comes."""
        return self.at == len(self.window.text)

    @property
    def is_complete(self) -> bool:
        """Whether no more text comes, and the model itself ended it."""
        return self.window.final and not self.is_cut

    def extend(self, text: str, *, final: bool) -> None:
        """More text comes; `final`: it is the last."""
        self.window, self.window_start, self.at = Window(self.rest + text, final), self.place, 0

    def take(self, end: int) -> str:
        """Read up to a place in the window."""
        text, self.at = self.window.text[self.at : end], end
        return text

    def take_to_line_or_tag(self) -> str:
        """Read up to where a line break stands or a tag may begin, or to the end."""
        found = _LINE_OR_TAG.search(self.window.text, self.at)
        return self.take(len(self.window.text) if found is None else found.start())

    def skip_newline(self) -> bool:
        """Read one line break if it comes next; whether it did."""
        end = self.window.literal(self.at, "\n")
        if end is not None:
            self.at = end
        return end is not None
