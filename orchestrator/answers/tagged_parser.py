"""A model's text taken apart while it arrives: reasoning, answer, tool calls."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from orchestrator.answers.call_parser import CallParser, HeldPlace
from orchestrator.answers.call_writer import CallWriter
from orchestrator.answers.cursor import Cursor
from orchestrator.answers.held_tools import HeldTool
from orchestrator.answers.parsed import Parsed, merge
from orchestrator.answers.tags import (
    CLOSERS,
    CLOSERS_AS_WRITTEN,
    END_OF_THINK,
    FUNCTION,
    MARKERS,
    THINK,
    TOOL_CALL,
    Named,
    Undecided,
    Window,
    call_opening,
    name_begun,
    opens_call,
)
from orchestrator.answers.tool_schema import ToolSchema, tool_schemas
from orchestrator.serving.answer import CallStarted, Reasoning, Text

_WORD = re.compile(r"[^\s<]+")
_BLANK = re.compile(r"\s+")


class TaggedParser:
    """Takes apart what Step-3.5 writes: reasoning, </think>, the answer, calls within <tool_call>.

    Calls are repaired where they name a known tool; docs/answers.md says how. Whatever else looks like a tag
    is text.

    Args:
        tools: of OpenAI's form.
        inside: whether the text begins inside reasoning. If not, it may still begin with <think>.
        call_prefix: calls get ids of it and a number.
        held: those of the tools whose calls are held to a form while tokens are chosen.
    """

    markers = MARKERS

    def __init__(
        self,
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        inside: bool = True,
        call_prefix: str = "call_",
        held: Mapping[str, HeldTool] | None = None,
    ) -> None:
        self._tools: dict[str, ToolSchema] = tool_schemas(tools)
        self._held = dict(held or {})
        self._inside = inside
        self._call_prefix = call_prefix
        self._num_calls = 0
        self._cursor = Cursor(Window("", final=False))
        self._parsed: list[Parsed] = []
        self._state: Callable[[], bool] = self._beginning
        # Of the answer: white space that is dropped if a call follows; whether only white space stands before
        # in this line; whether a call ended and no text followed.
        self._blank: list[Parsed] = []
        self._line_begins = True
        self._after_call = False
        self._call: CallParser | None = None

    @property
    def in_reasoning(self) -> bool:
        return self._inside

    @property
    def decided(self) -> int:
        return self._blank[0].start if self._blank else self._cursor.place

    @property
    def call(self) -> CallWriter | None:
        """The call that has begun and not ended."""
        return None if self._call is None else self._call.writer

    @property
    def held_place(self) -> HeldPlace | None:
        """Where the text stands in a call of a held tool, or at the beginning of one; None elsewhere."""
        if self._call is not None:
            return self._call.held_place
        if not self._held or self._inside:
            return None
        begun = name_begun(self._cursor.rest, FUNCTION)
        if begun is None or not begun.may_be_of(self._held):
            return None
        return HeldPlace("tag", self._num_calls)

    @property
    def held_text(self) -> str:
        """The text from the beginning of such a place on, where tokens follow a form there."""
        return self._cursor.rest if self._call is None else self._call.held_text

    def push(self, text: str) -> list[Parsed]:
        return self._take_apart(text, final=False)

    def finish(self, *, cut: bool = False) -> list[Parsed]:
        self._cursor.is_cut = cut
        return self._take_apart("", final=True)

    def _take_apart(self, text: str, *, final: bool) -> list[Parsed]:
        self._cursor.extend(text, final=final)
        try:
            # A state takes a piece of the text and says whether there may be more to do.
            while self._state():
                pass
        except Undecided:
            pass
        parsed = merge(self._parsed)
        self._parsed.clear()
        return parsed

    def _beginning(self) -> bool:
        cursor = self._cursor
        end = cursor.window.literal(cursor.window.skip_blank(cursor.at), THINK)
        if end is not None:
            cursor.at = end
            self._inside = True
        return self._behind_newline(self._reasoning) if self._inside else self._go_on(self._answer)

    def _go_on(self, state: Callable[[], bool]) -> bool:
        self._state = state
        return True

    def _behind_newline(self, state: Callable[[], bool]) -> bool:
        """Go on with a state behind one line break, which is no part of what follows."""

        def begin() -> bool:
            self._cursor.skip_newline()
            return self._go_on(state)

        return self._go_on(begin)

    # Reasoning.

    def _reasoning(self) -> bool:
        cursor, window = self._cursor, self._cursor.window
        if text := cursor.take_to_line_or_tag():
            self._reason(text)
        if cursor.is_at_end:
            return False
        tag = cursor.at
        if window.text[tag] == "\n":
            tag += 1
            if window.is_end(tag):
                cursor.at = tag
                return False
        if (end := window.literal(tag, END_OF_THINK)) is not None:
            cursor.at, self._inside = end, False
            return self._behind_newline(self._answer)
        if self._tools and opens_call(window, tag):
            cursor.at, self._inside = tag, False
            return self._go_on(self._answer)
        self._reason(cursor.take(cursor.at + 1))
        return True

    def _reason(self, text: str) -> None:
        self._parsed.append(Parsed(Reasoning(text)))

    # The answer.

    def _answer(self) -> bool:
        cursor, window = self._cursor, self._cursor.window
        if cursor.is_at_end:
            if window.final and not self._after_call:
                self._flush_blank()
            return False
        if blank := _BLANK.match(window.text, cursor.at):
            self._blank.append(self._text(blank.end()))
            self._line_begins = self._line_begins or "\n" in blank.group()
            return True
        if word := _WORD.match(window.text, cursor.at):
            return self._say(word.end())
        return self._tag_in_answer()

    def _tag_in_answer(self) -> bool:
        cursor, window = self._cursor, self._cursor.window
        if (end := window.literal(cursor.at, END_OF_THINK)) is not None:
            cursor.at = end
            return True
        if self._tools:
            bare = self._line_begins or self._after_call
            if opening := call_opening(window, cursor.at, self._tools, bare=bare):
                return self._begin_call(opening)
            if cursor.is_cut and self._begins_call():
                return self._drop(len(window.text))
        if self._after_call:
            for closer in CLOSERS:
                if (end := window.closing(cursor.at, closer)) is not None:
                    return self._drop(end)
            if window.breaks_off(cursor.at, CLOSERS_AS_WRITTEN):
                cursor.at = len(window.text)
                return True
        return self._say(cursor.at + 1)

    def _begins_call(self) -> bool:
        """Whether the text is the beginning of a call, so far that it may still name a known tool."""
        at, window = self._cursor.at, self._cursor.window
        if window.literal(at, TOOL_CALL) is None:
            return False
        try:
            call_opening(Window(window.text, final=False), at, self._tools, bare=False)
        except Undecided:
            return True
        return False

    def _say(self, end: int) -> bool:
        """What comes up to `end` is the answer's text, and so is the white space before it."""
        self._flush_blank()
        self._parsed.append(self._text(end))
        self._line_begins = self._after_call = False
        return True

    def _drop(self, end: int) -> bool:
        """What comes up to `end` is nobody's, and the white space before it neither."""
        self._blank = []
        self._cursor.at = end
        return True

    def _text(self, end: int) -> Parsed:
        """Take text up to `end`."""
        start = self._cursor.place
        text = self._cursor.take(end)
        return Parsed(Text(text), start, start + len(text))

    def _flush_blank(self) -> None:
        self._parsed += self._blank
        self._blank = []

    # Calls.

    def _begin_call(self, opening: Named) -> bool:
        call_id = f"{self._call_prefix}{self._num_calls}"
        writer = CallWriter(call_id, self._tools[opening.name], self._held.get(opening.name))
        self._num_calls += 1
        self._drop(opening.end)
        self._parsed.append(Parsed(CallStarted(call_id, opening.name)))
        self._call = CallParser(self._cursor, writer, self._num_calls, self._parsed.append)
        return self._go_on(self._in_call)

    def _in_call(self) -> bool:
        assert self._call is not None
        goes_on = self._call.step()
        if self._call.has_ended:
            self._call = None
            self._after_call, self._line_begins = True, True
            self._state = self._answer
        return goes_on
