"""Calls of held tools while they are written: which tokens may come next."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from orchestrator.answers.call_parser import HeldPlace
from orchestrator.answers.call_writer import CallWriter
from orchestrator.answers.held_tools import HeldTool
from orchestrator.answers.output_form import FormMatcher, OutputForms, Piece
from orchestrator.answers.tagged_parser import TaggedParser
from orchestrator.answers.tags import END_OF_FUNCTION, END_OF_PARAMETER, PARAMETER
from orchestrator.serving.request import OutputForm
from orchestrator.tokenizer import Tokenizer
from placement.errors import InputError
from placement.files.quote import quote

_CLOSED = f"\n{END_OF_PARAMETER}>"
# A tag ends before anything else comes, so that what comes behind it can be held to a form from its start.
_IN_TAG = re.compile(r"[^<>\n\ufffd]+|[^<>\n\ufffd]*>\n?")
# Behind what may be the end of a free text: white space, and no tag that would make it the end.
_BLANK = r"[ \t\r\n]"
_GOES_ON = (
    rf"/{_BLANK}{{0,24}}[^ \t\r\n](.|\n)*/"
    rf" & ~/{_BLANK}*<(parameter|\/parameter|function|\/function|tool_call>|\/tool_call)(.|\n)*/"
)


class HeldCalls:
    """Holds one answer's calls to the forms of their tools.

    It asks the answer's parser where the text stands. So what is held is what the parser reads, whatever the
    model writes. Outside of the calls, and in their free texts, any token may come and no mask is made.
    """

    def __init__(
        self,
        parser: TaggedParser,
        tools: Mapping[str, HeldTool],
        forms: OutputForms,
        tokenizer: Tokenizer,
        end_ids: Sequence[int],
    ) -> None:
        """
        Args:
            tools: those that the parser knows as held.
            end_ids: tokens that end an answer.

        Raises:
            InputError: a form of theirs is none.
        """
        self._parser = parser
        self._forms = forms
        self._tokenizer = tokenizer
        self._end_ids = frozenset(end_ids)
        self._in_tag = forms.tokens_like(_IN_TAG)
        self._place: HeldPlace | None = None
        self._matcher: FormMatcher | None = None
        self.end_of_text: tuple[int, ...] = tuple(tokenizer.encode(f"{_CLOSED}\n"))
        """Ends a free text."""
        # By tool and argument; an answer copies one, so that none of these has begun.
        self._values: dict[tuple[str, str], FormMatcher] = {}
        for name, tool in tools.items():
            for key, form in tool.forms.items():
                if form is None:
                    continue
                try:
                    self._values[name, key] = forms.in_call(_value(form, tool))
                except InputError as error:
                    where = "" if tool.takes_one else f", parameter {quote(key)}"
                    raise InputError(f"tools: {quote(name)}{where}: {error}") from error

    @property
    def is_broken(self) -> bool:
        """Whether a form took too much work, so that tokens are chosen without it now."""
        return self._matcher is not None and self._matcher.is_broken

    def may_not_end(self, token_id: int) -> bool:
        """Whether this token would end the answer in the midst of a held call."""
        return token_id in self._end_ids and self._place is not None and self._place.kind != "tag"

    def take(self, token_ids: Sequence[int]) -> bool:
        """The parser was given what these tokens say.

        Returns:
            Whether other tokens may come now than were told before: rows behind these count for nothing.
        """
        place = self._parser.held_place
        if place == self._place and self._matcher is not None:
            self._matcher.note(token_ids)
            return False
        if place == self._place and not self._is_bound(place):
            return False
        # Another place, or one in which the text has strayed from what it is held to: it may come back.
        self._place, self._matcher = place, None
        call = self._parser.call
        if call is not None and self._is_bound(place):
            self._matcher = self._begun(call)
        return True

    def allowed(self, drafts: Sequence[int]) -> Sequence[NDArray[np.uint32] | None]:
        """See `FormMatcher.allowed`."""
        if self._matcher is not None:
            return self._matcher.allowed(drafts)
        in_tag = self._place is not None and self._place.kind == "tag"
        return [self._in_tag if in_tag else None] * (len(drafts) + 1)

    @staticmethod
    def _is_bound(place: HeldPlace | None) -> bool:
        return place is not None and place.kind in ("between", "value", "behind")

    def _begun(self, call: CallWriter) -> FormMatcher | None:
        """What follows at this place; None where the text has begun otherwise."""
        assert self._place is not None
        if self._place.kind == "value":
            matcher = self._values[call.tool_name, call.key].copy()
        else:
            matcher = self._forms.in_call((_next(call, behind_text=self._place.kind == "behind"),))
        known = self._tokenizer.encode(self._parser.held_text)
        return matcher if matcher.takes(known) else None


def _value(form: OutputForm, tool: HeldTool) -> tuple[Piece, ...]:
    return ("\n", form, f"{_CLOSED}\n{END_OF_FUNCTION}>" if tool.takes_one else _CLOSED)


def _next(call: CallWriter, *, behind_text: bool) -> OutputForm:
    """An argument that has not come, or the call's end if no more have to come.

    Args:
        behind_text: it may also turn out that a text goes on.
    """
    assert call.held is not None
    come = call.arguments.keys() | ({call.key} if behind_text else set())
    tags = [f"{PARAMETER}={re.escape(key)}>" for key in call.held.forms if key not in come]
    if call.held.required <= come:
        tags.append(f"{END_OF_FUNCTION}>")
    tag = f"\n?({'|'.join(tags)})"
    if not behind_text:
        return OutputForm("regex", tag)
    escaped = tag.replace("/", r"\/")
    return OutputForm("grammar", f"start: TAG | TEXT\nTAG: /{escaped}/\nTEXT: {_GOES_ON}")
