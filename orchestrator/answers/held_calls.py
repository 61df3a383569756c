"""Calls of held tools while they are written: which tokens may come next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from orchestrator.answers.call_parser import HeldPlace
from orchestrator.answers.call_writer import CallWriter
from orchestrator.answers.calls_ahead import CallsAhead, Spot
from orchestrator.answers.held_forms import CLOSED, HeldForms
from orchestrator.answers.held_tools import HeldTool
from orchestrator.answers.output_form import FormMatcher, OutputForms
from orchestrator.answers.tagged_parser import TaggedParser
from orchestrator.tokenizer import Tokenizer

_BOUND = ("between", "value", "behind")


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
            ToolError: a form of theirs is none.
        """
        self._parser = parser
        self._tokenizer = tokenizer
        self._end_ids = frozenset(end_ids)
        self._forms = HeldForms(tools, forms)
        self._ahead = CallsAhead(self._forms, tokenizer)
        self._place: HeldPlace | None = None
        self._matcher: FormMatcher | None = None
        self.end_of_text: tuple[int, ...] = tuple(tokenizer.encode(f"{CLOSED}\n"))
        """Ends a free text."""

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
            Whether other tokens may come now than were allowed before: rows behind these count for nothing.
        """
        is_guess = self._ahead.noted(token_ids, self._has_moved(token_ids))
        return is_guess and not self._ahead.has_guessed(self._row())

    def allowed(self, drafts: Sequence[int]) -> Sequence[NDArray[np.uint32] | None]:
        """See `FormMatcher.allowed`."""
        if not self._ahead.has_begun:
            self._ahead.begin(self._spot())
        return self._ahead.allowed(drafts)

    def _has_moved(self, token_ids: Sequence[int]) -> bool:
        """Whether the text stands in another place than before."""
        place = self._parser.held_place
        if place == self._place and self._matcher is not None:
            self._matcher.note(token_ids)
            return False
        if place == self._place and (place is None or place.kind not in _BOUND):
            return False
        # Another place, or one in which the text has strayed from what it is held to: it may come back.
        self._place, self._matcher = place, None
        call = self._parser.call
        if call is not None and place is not None and place.kind in _BOUND:
            self._matcher = self._begun(call, place)
        return True

    def _row(self) -> NDArray[np.uint32] | None:
        """What may come next."""
        if self._matcher is not None:
            return self._matcher.allowed([])[0]
        return self._forms.in_tag if self._place is not None and self._place.kind == "tag" else None

    def _begun(self, call: CallWriter, place: HeldPlace) -> FormMatcher | None:
        """What follows at this place; None where the text has begun otherwise."""
        matcher: FormMatcher | None
        if place.kind == "value":
            matcher = self._forms.value(call.tool_name, call.key)
            assert matcher is not None
        elif place.kind == "behind":
            matcher = self._forms.behind(call.tool_name, call.arguments.keys() | {call.key})
        else:
            matcher = self._forms.between(call.tool_name, call.arguments.keys())
        known = self._tokenizer.encode(self._parser.held_text)
        return matcher if matcher.takes(known) else None

    def _spot(self) -> Spot:
        """Where the text stands."""
        place, call = self._place, self._parser.call
        text = "" if place is not None and place.kind == "value" else self._parser.held_text
        if place is None or (place.kind in _BOUND and self._matcher is None):
            return Spot("outside", text=text if call is None else "")
        if call is None:
            return Spot("tag", text=text)
        return Spot(place.kind, call.tool_name, frozenset(call.arguments), call.key, text, self._matcher)
