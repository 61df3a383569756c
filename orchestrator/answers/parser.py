"""A model's text taken apart while it arrives: reasoning, answer, tool calls."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from orchestrator.answers.call_writer import CallWriter
from orchestrator.answers.held_tools import HeldTool
from orchestrator.answers.tags import (
    END_OF_FUNCTION,
    END_OF_PARAMETER,
    END_OF_THINK,
    END_OF_TOOL_CALL,
    FUNCTION,
    MARKERS,
    PARAMETER,
    THINK,
    TOOL_CALL,
    Named,
    QuotedCall,
    Undecided,
    Window,
    call_opening,
    name_begun,
    opens_call,
)
from orchestrator.answers.tool_schema import ToolSchema, tool_schemas
from orchestrator.serving.answer import CallArguments, CallEnded, CallStarted, Reasoning, Text

AnswerPart = Reasoning | Text | CallStarted | CallArguments | CallEnded

_CLOSERS = (END_OF_PARAMETER, END_OF_FUNCTION, END_OF_TOOL_CALL)
_CLOSERS_AS_WRITTEN = tuple(f"{closer.removesuffix('>')}>" for closer in _CLOSERS)
_IN_CALL = (*_CLOSERS_AS_WRITTEN, f"{PARAMETER}=", f"{FUNCTION}=", TOOL_CALL)
# What may stand behind an argument's end.
_AFTER_ARGUMENT = (PARAMETER, END_OF_PARAMETER, END_OF_FUNCTION, "</tool_call", FUNCTION, TOOL_CALL)
_CLOSED = re.compile(rf"\A\n?{re.escape(_CLOSERS_AS_WRITTEN[0])}")
_WORD = re.compile(r"[^\s<]+")
_BLANK = re.compile(r"\s+")
_LINE_OR_TAG = re.compile(r"[\n<]")


@dataclass(frozen=True, slots=True)
class Parsed:
    """An event, and of a Text the characters of the model's text that it consists of: from start to end."""

    event: AnswerPart
    start: int = 0
    end: int = 0


@dataclass(frozen=True, slots=True)
class HeldPlace:
    """Where a text stands in a call that is held to a form.

    Attributes:
        kind: "tag": in a tag that may begin a call, or end a free text; its `>` is to come.
            "between": before an argument or the call's end.
            "value": in an argument that follows a form.
            "text": in one that is free.
            "behind": behind what is its end if the right thing follows.
        number: tells it from other places of its kind.
    """

    kind: Literal["tag", "between", "value", "text", "behind"]
    number: int


class Parser(Protocol):
    """Takes a model's text apart. The events are the same, put together, however the text is cut."""

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that it has to see even where they are special tokens."""
        ...

    @property
    def in_reasoning(self) -> bool:
        """Whether what comes next is reasoning, as far as the text so far tells."""
        ...

    @property
    def decided(self) -> int:
        """Characters of the text that no later event consists of."""
        ...

    def push(self, text: str) -> list[Parsed]:
        """What is certain with this piece of text."""
        ...

    def finish(self, *, cut: bool = False) -> list[Parsed]:
        """What was held back.

        Args:
            cut: the text was cut off, as by a limit of tokens. A call that was not complete then never ends.
        """
        ...


def choose_parser(
    template: str | None,
    prompt: str,
    tools: Sequence[Mapping[str, Any]] = (),
    call_prefix: str = "call_",
    held: Mapping[str, HeldTool] | None = None,
) -> Parser:
    """The parser for a model's answer, by what its chat template speaks of.

    Args:
        template: its text; None for a text to continue without one.
        prompt: what the template gave. Where it ends within <think>, the answer begins inside reasoning.
        tools: of OpenAI's form; none where the request hides them.
        call_prefix: ids of calls begin with it; what makes them unique beyond the answer.
        held: those of the tools whose calls are held to a form.
    """
    reasons = template is not None and THINK in template
    calls = tools if template is not None and TOOL_CALL in template and FUNCTION in template else ()
    if not reasons and not calls:
        return PlainParser()
    inside = reasons and prompt.rstrip().endswith(THINK)
    return TaggedParser(calls, inside=inside, call_prefix=call_prefix, held=held)


class PlainParser:
    """All text is the answer."""

    markers: tuple[str, ...] = ()
    in_reasoning = False

    def __init__(self) -> None:
        self._end = 0

    @property
    def decided(self) -> int:
        return self._end

    def push(self, text: str) -> list[Parsed]:
        if not text:
            return []
        start, self._end = self._end, self._end + len(text)
        return [Parsed(Text(text), start, self._end)]

    def finish(self, *, cut: bool = False) -> list[Parsed]:
        return []


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
        self._window = Window("", final=False)
        # Where the next character stands in the window, and where the window stands in the whole text.
        self._at = 0
        self._window_start = 0
        self._parsed: list[Parsed] = []
        self._state: Callable[[], bool] = self._beginning
        # Of the answer: white space that is dropped if a call follows; whether only white space stands before
        # in this line; whether a call ended and no text followed.
        self._blank: list[Parsed] = []
        self._line_begins = True
        self._after_call = False
        self._call: CallWriter | None = None
        # Whether an argument's value comes, what was skipped before it, and how many such places there were.
        self._in_value = False
        self._skipped = ""
        self._num_places = 0
        self._quote = QuotedCall()
        self._is_cut = False

    @property
    def in_reasoning(self) -> bool:
        return self._inside

    @property
    def decided(self) -> int:
        return self._blank[0].start if self._blank else self._window_start + self._at

    @property
    def call(self) -> CallWriter | None:
        """The call that has begun and not ended."""
        return self._call

    @property
    def held_place(self) -> HeldPlace | None:
        """Where the text stands in a call of a held tool, or at the beginning of one; None elsewhere."""
        rest = self._window.text[self._at :]
        call = self._call
        if call is None:
            begun = name_begun(rest, FUNCTION) if self._held and not self._inside else None
            is_held = begun is not None and begun.may_be_of(self._held)
            return HeldPlace("tag", self._num_places) if is_held else None
        if call.held is None:
            return None
        if not self._in_value:
            return HeldPlace("between", self._num_places)
        if call.is_bound:
            return HeldPlace("value", self._num_places)
        if _CLOSED.match(rest):
            return HeldPlace("behind", self._window_start + self._at)
        begun = name_begun(rest, PARAMETER)
        if begun is not None and begun.may_be_of(filter(call.may_follow, call.held.forms)):
            return HeldPlace("tag", self._num_places)
        is_closing = rest.removeprefix("\n") == END_OF_PARAMETER
        return HeldPlace("tag" if is_closing else "text", self._num_places)

    @property
    def held_text(self) -> str:
        """The text from the beginning of such a place on, where tokens follow a form there."""
        rest = self._window.text[self._at :]
        if self._call is None or not self._in_value:
            return rest
        if self._call.is_bound:
            return f"{self._skipped}{self._call.text}{rest}"
        return _CLOSED.sub("", rest, count=1)

    def push(self, text: str) -> list[Parsed]:
        return self._take_apart(text, final=False)

    def finish(self, *, cut: bool = False) -> list[Parsed]:
        self._is_cut = cut
        return self._take_apart("", final=True)

    def _take_apart(self, text: str, *, final: bool) -> list[Parsed]:
        self._window_start += self._at
        self._window = Window(self._window.text[self._at :] + text, final)
        self._at = 0
        try:
            # A state takes a piece of the text and says whether there may be more to do.
            while self._state():
                pass
        except Undecided:
            pass
        parsed, self._parsed = merge(self._parsed), []
        return parsed

    # Reasoning.

    def _beginning(self) -> bool:
        end = self._window.literal(self._window.skip_blank(self._at), THINK)
        if end is not None:
            self._at = end
            self._inside = True
        return self._begin_text(self._reasoning if self._inside else self._answer, self._inside)

    def _begin_text(self, state: Callable[[], bool], skip_newline: bool) -> bool:
        """Go on with a state, behind one line break where it is no part of what follows."""

        def begin() -> bool:
            if self._window.literal(self._at, "\n") is not None:
                self._at += 1
                self._skipped = "\n"
            self._state = state
            return True

        self._state = begin if skip_newline else state
        return True

    def _reasoning(self) -> bool:
        window = self._window
        place = self._feed_to_line_or_tag(self._reason)
        if place is None:
            return False
        tag, end = place, None
        if window.text[place] == "\n":
            tag = place + 1
            if window.is_end(tag):
                self._at = tag
                return False
        if (end := window.literal(tag, END_OF_THINK)) is not None:
            self._at, self._inside = end, False
            return self._begin_text(self._answer, True)
        if self._tools and opens_call(window, tag):
            self._at, self._inside = tag, False
            return self._begin_text(self._answer, False)
        self._reason(window.text[place : place + 1])
        self._at = place + 1
        return True

    def _reason(self, text: str) -> None:
        self._parsed.append(Parsed(Reasoning(text)))

    def _feed_to_line_or_tag(self, feed: Callable[[str], None]) -> int | None:
        """Feed what is neither; where a line break or a tag may begin, None at the end of the text."""
        found = _LINE_OR_TAG.search(self._window.text, self._at)
        stop = len(self._window.text) if found is None else found.start()
        if stop > self._at:
            feed(self._window.text[self._at : stop])
            self._at = stop
        return None if found is None else stop

    # The answer.

    def _answer(self) -> bool:
        window = self._window
        if self._at == len(window.text):
            if window.final and not self._after_call:
                self._flush_blank()
            return False
        if blank := _BLANK.match(window.text, self._at):
            self._blank.append(self._text(blank.end()))
            self._line_begins = self._line_begins or "\n" in blank.group()
            return True
        if word := _WORD.match(window.text, self._at):
            self._flush_blank()
            self._parsed.append(self._text(word.end()))
            self._line_begins = self._after_call = False
            return True
        return self._tag_in_answer()

    def _tag_in_answer(self) -> bool:
        window = self._window
        if (end := window.literal(self._at, END_OF_THINK)) is not None:
            self._at = end
            return True
        if self._tools:
            bare = self._line_begins or self._after_call
            if opening := call_opening(window, self._at, self._tools, bare=bare):
                self._blank = []
                return self._begin_call(opening)
            if self._is_cut and self._begins_call():
                self._blank = []
                self._at = len(window.text)
                return True
        if self._after_call:
            for closer in _CLOSERS:
                if (end := window.closing(self._at, closer)) is not None:
                    self._at = end
                    self._blank = []
                    return True
            if window.breaks_off(self._at, _CLOSERS_AS_WRITTEN):
                self._at = len(window.text)
                return True
        self._flush_blank()
        self._parsed.append(self._text(self._at + 1))
        self._line_begins = self._after_call = False
        return True

    def _begins_call(self) -> bool:
        """Whether the text is the beginning of a call, so far that it may still name a known tool."""
        window = self._window
        if window.literal(self._at, TOOL_CALL) is None:
            return False
        try:
            call_opening(Window(window.text, final=False), self._at, self._tools, bare=False)
        except Undecided:
            return True
        return False

    def _text(self, end: int) -> Parsed:
        """Take text up to `end`."""
        start, self._at = self._at, end
        begin = self._window_start
        return Parsed(Text(self._window.text[start:end]), begin + start, begin + end)

    def _flush_blank(self) -> None:
        self._parsed += self._blank
        self._blank = []

    # Calls.

    def _begin_call(self, opening: Named) -> bool:
        call_id = f"{self._call_prefix}{self._num_calls}"
        self._num_calls += 1
        self._call = CallWriter(call_id, self._tools[opening.name], self._held.get(opening.name))
        self._num_places += 1
        self._parsed.append(Parsed(CallStarted(call_id, opening.name)))
        self._at = opening.end
        self._state = self._between_arguments
        return True

    def _end_call(self) -> bool:
        call = self._in_call()
        self._write(call.close())
        self._parsed.append(Parsed(CallEnded(call.call_id, call.arguments)))
        self._call = None
        self._after_call, self._line_begins = True, True
        self._state = self._answer
        return True

    def _between_arguments(self) -> bool:
        window = self._window
        if blank := _BLANK.match(window.text, self._at):
            self._at = blank.end()
        if self._at == len(window.text):
            return window.final and not self._is_cut and self._end_call()
        if (end := window.closing(self._at, END_OF_PARAMETER)) is not None:
            self._at = end
            return True
        call = self._in_call()
        if call.held is not None:
            for closer in (END_OF_FUNCTION, END_OF_TOOL_CALL):
                if (end := window.closing(self._at, closer)) is not None:
                    if not call.lacks:
                        return self._end_call()
                    self._at = end
                    return True
        elif window.any_of(self._at, (END_OF_FUNCTION, END_OF_TOOL_CALL)):
            # The answer drops tags that close a call.
            return self._end_call()
        named = window.named(self._at, PARAMETER)
        if named and (named.closed or not window.is_end(named.end)):
            call.begin(named.name)
            self._quote = QuotedCall()
            self._at = named.end
            self._in_value, self._skipped = True, ""
            self._num_places += 1
            return self._begin_text(self._argument, True)
        if named or window.breaks_off(self._at, _IN_CALL, least=1):
            self._at = len(window.text)
            return True
        if call.lacks and not window.final:
            # What is missing is still to come.
            self._at += 1
            return True
        # Another call or text: this one has ended without saying so.
        return self._end_call()

    def _argument(self) -> bool:
        window = self._window
        place = self._feed_to_line_or_tag(self._feed)
        if place is None:
            return self._end_argument(self._at) if window.final and not self._is_cut else False
        tag = place
        if window.text[place] == "\n":
            tag = place + 1
            if window.is_end(tag):
                self._at = tag
                return True
        call = self._in_call()
        line_begins = tag > place or call.is_empty
        stop = place + 1
        if call.is_bound:
            if (end := self._bound_end(tag, line_begins=line_begins)) is not None:
                return self._end_argument(end)
        elif call.takes_text and self._quote.goes_on(window, tag, line_begins=line_begins):
            stop = tag + 1
        elif (end := self._argument_end(tag, line_begins=line_begins)) is not None:
            return self._end_argument(end)
        self._feed(window.text[place:stop])
        self._at = stop
        return True

    def _bound_end(self, at: int, *, line_begins: bool) -> int | None:
        """The same of an argument that follows a form, which may have other tags in it."""
        end = self._window.literal(at, f"{END_OF_PARAMETER}>") if line_begins else None
        held = self._in_call().held
        if end is None or held is None or not held.takes_one:
            return end
        return None if self._window.literal(end, f"\n{END_OF_FUNCTION}") is None else end

    def _argument_end(self, at: int, *, line_begins: bool) -> int | None:
        """Where to go on if the argument ends at a tag that stands at `at`.

        In a text tags may stand, so that there it must be followed by what follows an argument.
        """
        window, call = self._window, self._in_call()
        if (end := window.closing(at, END_OF_PARAMETER)) is not None:
            if not call.takes_text:
                return end
            behind = window.skip_blank(end)
            follows = window.is_end(behind) or window.any_of(behind, _AFTER_ARGUMENT)
            return end if follows else None
        for closer in (END_OF_FUNCTION, END_OF_TOOL_CALL):
            if (end := window.closing(at, closer)) is not None:
                if not call.takes_text:
                    return at
                behind = window.skip_blank(end)
                follows = window.is_end(behind) or window.any_of(behind, (END_OF_TOOL_CALL, TOOL_CALL))
                return at if follows else None
        if (named := window.named(at, PARAMETER)) and call.may_follow(named.name):
            return at if line_begins or not call.takes_text else None
        return len(window.text) if window.breaks_off(at, _CLOSERS_AS_WRITTEN) else None

    def _end_argument(self, end: int) -> bool:
        self._write(self._in_call().end())
        self._at = end
        self._in_value = False
        self._num_places += 1
        self._state = self._between_arguments
        return True

    def _feed(self, text: str) -> None:
        self._write(self._in_call().feed(text))

    def _write(self, text: str) -> None:
        if text:
            self._parsed.append(Parsed(CallArguments(self._in_call().call_id, text)))

    def _in_call(self) -> CallWriter:
        assert self._call is not None
        return self._call


def merge(parsed: Sequence[Parsed]) -> list[Parsed]:
    """The same with neighbouring pieces of one kind put together."""
    merged: list[Parsed] = []
    run: list[str] = []
    for one in parsed:
        last = merged[-1] if merged else None
        if last is not None and _goes_on(last, one):
            assert isinstance(one.event, Reasoning | Text | CallArguments)
            run.append(one.event.text)
            merged[-1] = Parsed(last.event, last.start, one.end)
            continue
        _put_together(merged, run)
        merged.append(one)
    _put_together(merged, run)
    return merged


def _put_together(merged: list[Parsed], run: list[str]) -> None:
    """Give the last event all the text that belongs to it."""
    if not run:
        return
    last = merged[-1]
    event = last.event
    assert isinstance(event, Reasoning | Text | CallArguments)
    text = event.text + "".join(run)
    run.clear()
    if isinstance(event, CallArguments):
        merged[-1] = Parsed(CallArguments(event.call_id, text))
    else:
        merged[-1] = Parsed(type(event)(text), last.start, last.end)


def _goes_on(last: Parsed, one: Parsed) -> bool:
    if isinstance(last.event, CallArguments):
        return isinstance(one.event, CallArguments) and one.event.call_id == last.event.call_id
    if isinstance(last.event, Text):
        return isinstance(one.event, Text) and one.start == last.end
    return isinstance(last.event, Reasoning) and isinstance(one.event, Reasoning)
