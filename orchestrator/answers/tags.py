"""The tags in a model's text, found while it arrives: they are there, or not, or more text will tell."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from dataclasses import dataclass

THINK = "<think>"
END_OF_THINK = "</think>"
TOOL_CALL = "<tool_call>"
END_OF_TOOL_CALL = "</tool_call>"
FUNCTION = "<function"
END_OF_FUNCTION = "</function"
PARAMETER = "<parameter"
END_OF_PARAMETER = "</parameter"
CLOSERS = (END_OF_PARAMETER, END_OF_FUNCTION, END_OF_TOOL_CALL)
CLOSERS_AS_WRITTEN = tuple(f"{closer.removesuffix('>')}>" for closer in CLOSERS)

MARKERS = (THINK, END_OF_THINK, TOOL_CALL, END_OF_TOOL_CALL)
"""Tags that are single tokens in some vocabularies, and special ones in some."""

# What is looked through for a tag is bounded, so that no text makes the parser hold back much of it.
MOST_BLANK = 64
MOST_NAME = 256
_MOST_OPENINGS = 3

_BLANK = re.compile(rf"\s{{0,{MOST_BLANK}}}")
_HEAD = re.compile(rf"[^>\n<]{{0,{MOST_NAME}}}")
# `=NAME`, ` NAME`, `=parameter=NAME`, ` name="NAME"`.
_NAMED = re.compile(r"""(?:\s*=|\s)\s*(?:(?:function|parameter|name)\s*=\s*)*["']?([^\s"'=/]+)["']?/?""")
# The same at a text's end, up to so much of the name as is there, and what stands behind it.
_BEGUN = re.compile(
    rf"""({FUNCTION}|{PARAMETER})(?:\s*=|\s)\s*(?:(?:function|parameter|name)\s*=\s*)*["']?"""
    r"""([^\s"'=/<>]*)([^<>\n]*)\Z"""
)


class Undecided(Exception):
    """The text so far does not tell; what comes next will."""


@dataclass(frozen=True, slots=True)
class Named:
    """A tag's name, where what it opens begins, and whether the tag had its `>`."""

    name: str
    end: int
    closed: bool


@dataclass(frozen=True, slots=True)
class Window:
    """The text that is not taken apart yet.

    Every answer depends on the text alone, not on where it was cut. What cannot be told before more text
    comes raises Undecided.

    Attributes:
        final: no more text will come.
    """

    text: str
    final: bool

    def literal(self, at: int, word: str) -> int | None:
        """Where `word` ends if it stands at `at`."""
        if self.text.startswith(word, at):
            return at + len(word)
        rest = len(self.text) - at
        if not self.final and rest < len(word) and self.text.endswith(word[:rest]):
            raise Undecided
        return None

    def any_of(self, at: int, words: Iterable[str]) -> bool:
        """Whether one of the words stands at `at`."""
        return any(self.literal(at, word) is not None for word in words)

    def skip_blank(self, at: int) -> int:
        """Where white space ends, at most `MOST_BLANK` characters of it."""
        blank = _BLANK.match(self.text, at)
        end = at if blank is None else blank.end()
        if end == len(self.text) and end < at + MOST_BLANK and not self.final:
            raise Undecided
        return end

    def is_end(self, at: int) -> bool:
        """Whether no text follows."""
        return self.final and at == len(self.text)

    def closing(self, at: int, tag: str) -> int | None:
        """Where a closing tag ends, which may lack its `>`."""
        end = self.literal(at, tag.removesuffix(">"))
        if end is None or self.is_end(end):
            return end
        if end == len(self.text):
            raise Undecided
        if self.text[end] == ">":
            return end + 1
        return end if self.text[end].isspace() or self.text[end] == "<" else None

    def breaks_off(self, at: int, words: Iterable[str], *, least: int = 3) -> bool:
        """Whether the text ends within one of the words, after so many characters of it at least."""
        rest = self.text[at : at + MOST_NAME]
        return self.final and len(rest) >= least and any(word.startswith(rest) for word in words)

    def named(self, at: int, tag: str) -> Named | None:
        """The tag with its name if it stands at `at`.

        A tag without its `>` ends behind its name, and behind the line where only the name stands in it.
        """
        begin = self.literal(at, tag)
        if begin is None:
            return None
        head = _HEAD.match(self.text, begin)
        stop = begin if head is None else head.end()
        if stop == len(self.text) and stop < begin + MOST_NAME and not self.final:
            raise Undecided
        closed = self.text.startswith(">", stop)
        found = _NAMED.match(self.text, begin, stop)
        if found is None:
            return None
        if closed:
            return Named(found.group(1), stop + 1, True)
        end = found.end()
        return Named(found.group(1), end + self.text.startswith(" ", end), False)


def call_opening(window: Window, at: int, names: Container[str], *, bare: bool) -> Named | None:
    """The beginning of a call of a known tool, if it stands at `at`.

    Args:
        bare: whether `<tool_call>` may be missing. Then an argument or the call's end has to follow.
    """
    wrapped = False
    for _ in range(_MOST_OPENINGS):
        end = window.literal(at, TOOL_CALL)
        if end is None:
            break
        wrapped, at = True, window.skip_blank(end)
    if not wrapped and not bare:
        return None
    found = window.named(at, FUNCTION)
    if found is None or found.name not in names:
        return None
    if wrapped and found.closed:
        return found
    behind = window.skip_blank(found.end)
    follows = window.any_of(behind, (PARAMETER, END_OF_FUNCTION, END_OF_TOOL_CALL))
    return found if follows or (wrapped and window.is_end(behind)) else None


def opens_call(window: Window, at: int) -> bool:
    """Whether a call of any tool, known or not, begins at `at`."""
    end = window.literal(at, TOOL_CALL)
    return end is not None and window.any_of(window.skip_blank(end), (TOOL_CALL, FUNCTION))


@dataclass(frozen=True, slots=True)
class NameBegun:
    """The name in a tag without its `>`, as far as it has come; `ended`: whether it is whole."""

    name: str
    ended: bool

    def may_be_of(self, names: Iterable[str]) -> bool:
        """Whether it is one of these, or may become one."""
        return any(name == self.name or (not self.ended and name.startswith(self.name)) for name in names)


def name_begun(text: str, tag: str) -> NameBegun | None:
    """Of a text that ends in the midst of a tag."""
    found = _BEGUN.search(text)
    if found is None or found.group(1) != tag:
        return None
    return NameBegun(found.group(2), bool(found.group(3)))


class QuotedCall:
    """A call that an argument's text quotes, as in a page about calls: its tags end nothing.

    It begins with a whole `<function=NAME>` at the beginning of a line. What closes its arguments, itself and
    the `<tool_call>` around it belongs to the text.
    """

    def __init__(self) -> None:
        self._is_open = False
        self._is_closed = False
        self._arguments = 0

    def goes_on(self, window: Window, at: int, *, line_begins: bool) -> bool:
        """Whether a tag that stands at `at` belongs to a quoted call."""
        if self._is_closed and window.closing(at, END_OF_TOOL_CALL) is not None:
            self._is_closed = False
            return True
        if not self._is_open:
            named = window.named(at, FUNCTION) if line_begins else None
            self._is_open = named is not None and named.closed
            return self._is_open
        named = window.named(at, PARAMETER)
        if named is not None and named.closed:
            self._arguments += 1
            return True
        if self._arguments and window.closing(at, END_OF_PARAMETER) is not None:
            self._arguments -= 1
            return True
        if window.closing(at, END_OF_FUNCTION) is None:
            return False
        self._is_open, self._is_closed, self._arguments = False, True, 0
        return True
