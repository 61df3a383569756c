"""One call taken apart while it arrives: its arguments, and what stands between them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from orchestrator.answers.call_writer import CallWriter
from orchestrator.answers.cursor import Cursor
from orchestrator.answers.parsed import Parsed
from orchestrator.answers.tags import (
    CLOSERS_AS_WRITTEN,
    END_OF_FUNCTION,
    END_OF_PARAMETER,
    END_OF_TOOL_CALL,
    FUNCTION,
    PARAMETER,
    TOOL_CALL,
    QuotedCall,
    name_begun,
)
from orchestrator.serving.answer import CallArguments, CallEnded

_ENDS_OF_CALL = (END_OF_FUNCTION, END_OF_TOOL_CALL)
_IN_CALL = (*CLOSERS_AS_WRITTEN, f"{PARAMETER}=", f"{FUNCTION}=", TOOL_CALL)
# What may stand behind an argument's end.
_AFTER_ARGUMENT = (PARAMETER, END_OF_PARAMETER, END_OF_FUNCTION, "</tool_call", FUNCTION, TOOL_CALL)
_CLOSED = re.compile(rf"\A\n?{re.escape(END_OF_PARAMETER)}>")
_BLANK = re.compile(r"\s+")


_Kind = Literal["tag", "between", "value", "text", "behind"]


@dataclass(frozen=True, slots=True)
class HeldPlace:
    """Where a text stands in a call that is held to a form.

    Attributes:
        kind: "tag": in a tag that may begin a call, or end a free text; its `>` is to come.
            "between": before an argument or the call's end.
            "value": in an argument that follows a form.
            "text": in one that is free.
            "behind": behind what is its end if the right thing follows.
        num_calls: that have begun.
        number: tells it from other places of its kind in the same call.
    """

    kind: _Kind
    num_calls: int
    number: int = 0


class CallParser:
    """Takes a call apart from behind its opening tag to its end.

    Args:
        cursor: behind the tag; it is moved on.
        num_calls: that have begun in the text, with this one.
        emit: takes the events.

    Attributes:
        writer: has the arguments that have come.
        has_ended: whether the call is complete.
    """

    def __init__(
        self, cursor: Cursor, writer: CallWriter, num_calls: int, emit: Callable[[Parsed], None]
    ) -> None:
        self.writer = writer
        self.has_ended = False
        self._cursor = cursor
        self._num_calls = num_calls
        self._emit = emit
        self._state: Callable[[], bool] = self._between_arguments
        # Whether an argument's value comes, what was skipped before it, and how many such places there were.
        self._in_value = False
        self._skipped = ""
        self._num_places = 0
        self._quote = QuotedCall()

    @property
    def held_place(self) -> HeldPlace | None:
        """Where the text stands in it; None if the call is free."""
        call = self.writer
        if call.held is None:
            return None
        if not self._in_value:
            return self._place("between")
        if call.is_bound:
            return self._place("value")
        rest = self._cursor.rest
        if _CLOSED.match(rest):
            return HeldPlace("behind", self._num_calls, self._cursor.place)
        begun = name_begun(rest, PARAMETER)
        if begun is not None and begun.may_be_of(filter(call.may_follow, call.held.forms)):
            return self._place("tag")
        is_closing = rest.removeprefix("\n") == END_OF_PARAMETER
        return self._place("tag" if is_closing else "text")

    @property
    def held_text(self) -> str:
        """The text from the beginning of that place on, where tokens follow a form there."""
        rest = self._cursor.rest
        if not self._in_value:
            return rest
        if self.writer.is_bound:
            return f"{self._skipped}{self.writer.text}{rest}"
        return _CLOSED.sub("", rest, count=1)

    def step(self) -> bool:
        """Take a piece of the text; whether there may be more to do.

        Raises:
            Undecided: more text will tell. What was certain is taken.
        """
        return self._state()

    def _place(self, kind: _Kind) -> HeldPlace:
        return HeldPlace(kind, self._num_calls, self._num_places)

    def _between_arguments(self) -> bool:
        cursor, window, call = self._cursor, self._cursor.window, self.writer
        if blank := _BLANK.match(window.text, cursor.at):
            cursor.at = blank.end()
        if cursor.is_at_end:
            return cursor.is_complete and self._end_call()
        if (end := window.closing(cursor.at, END_OF_PARAMETER)) is not None:
            cursor.at = end
            return True
        if call.held is not None:
            for closer in _ENDS_OF_CALL:
                if (end := window.closing(cursor.at, closer)) is not None:
                    if not call.lacks:
                        return self._end_call()
                    cursor.at = end
                    return True
        elif window.any_of(cursor.at, _ENDS_OF_CALL):
            # The answer drops tags that close a call.
            return self._end_call()
        named = window.named(cursor.at, PARAMETER)
        if named and (named.closed or not window.is_end(named.end)):
            cursor.at = named.end
            return self._begin_argument(named.name)
        if named or window.breaks_off(cursor.at, _IN_CALL, least=1):
            cursor.at = len(window.text)
            return True
        if call.lacks and not window.final:
            # What is missing is still to come.
            cursor.at += 1
            return True
        # Another call or text: this one has ended without saying so.
        return self._end_call()

    def _begin_argument(self, name: str) -> bool:
        self.writer.begin(name)
        self._quote = QuotedCall()
        self._in_value, self._skipped = True, ""
        self._num_places += 1
        self._state = self._before_value
        return True

    def _before_value(self) -> bool:
        """One line break is no part of what follows."""
        if self._cursor.skip_newline():
            self._skipped = "\n"
        self._state = self._value
        return True

    def _value(self) -> bool:
        cursor, window, call = self._cursor, self._cursor.window, self.writer
        if text := cursor.take_to_line_or_tag():
            self._write(call.feed(text))
        if cursor.is_at_end:
            return cursor.is_complete and self._end_argument(cursor.at)
        tag = cursor.at
        if window.text[tag] == "\n":
            tag += 1
            if window.is_end(tag):
                cursor.at = tag
                return True
        line_begins = tag > cursor.at or call.is_empty
        stop = cursor.at + 1
        if call.is_bound:
            if (end := self._bound_end(tag, line_begins=line_begins)) is not None:
                return self._end_argument(end)
        elif call.takes_text and self._quote.goes_on(window, tag, line_begins=line_begins):
            stop = tag + 1
        elif (end := self._free_end(tag, line_begins=line_begins)) is not None:
            return self._end_argument(end)
        self._write(call.feed(cursor.take(stop)))
        return True

    def _free_end(self, at: int, *, line_begins: bool) -> int | None:
        """Where to go on if the argument ends at a tag that stands at `at`.

        In a text tags may stand, so that there it must be followed by what follows an argument.
        """
        window, call = self._cursor.window, self.writer
        if (end := window.closing(at, END_OF_PARAMETER)) is not None:
            if not call.takes_text:
                return end
            behind = window.skip_blank(end)
            follows = window.is_end(behind) or window.any_of(behind, _AFTER_ARGUMENT)
            return end if follows else None
        for closer in _ENDS_OF_CALL:
            if (end := window.closing(at, closer)) is not None:
                if not call.takes_text:
                    return at
                behind = window.skip_blank(end)
                follows = window.is_end(behind) or window.any_of(behind, (END_OF_TOOL_CALL, TOOL_CALL))
                return at if follows else None
        if (named := window.named(at, PARAMETER)) and call.may_follow(named.name):
            return at if line_begins or not call.takes_text else None
        return len(window.text) if window.breaks_off(at, CLOSERS_AS_WRITTEN) else None

    def _bound_end(self, at: int, *, line_begins: bool) -> int | None:
        """The same of an argument that follows a form, which may have other tags in it."""
        window, held = self._cursor.window, self.writer.held
        end = window.literal(at, f"{END_OF_PARAMETER}>") if line_begins else None
        if end is None or held is None or not held.takes_one:
            return end
        return None if window.literal(end, f"\n{END_OF_FUNCTION}") is None else end

    def _end_argument(self, end: int) -> bool:
        self._write(self.writer.end())
        self._cursor.at = end
        self._in_value = False
        self._num_places += 1
        self._state = self._between_arguments
        return True

    def _end_call(self) -> bool:
        self._write(self.writer.close())
        self._emit(Parsed(CallEnded(self.writer.call_id, self.writer.arguments)))
        self.has_ended = True
        return True

    def _write(self, text: str) -> None:
        if text:
            self._emit(Parsed(CallArguments(self.writer.call_id, text)))
