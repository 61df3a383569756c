"""Which tokens may come behind drafts that lead from one part of a held call to the next."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from orchestrator.answers.held_forms import HeldForms
from orchestrator.answers.output_form import FormMatcher
from orchestrator.answers.tags import END_OF_PARAMETER, FUNCTION, PARAMETER, name_begun
from orchestrator.tokenizer import Tokenizer
from placement.errors import InputError

_ARGUMENT = re.compile(rf"{PARAMETER}=([^<>\n]+)>\Z")
_CALL = re.compile(rf"{FUNCTION}=([^<>\n]+)>\n?\Z")
_CLOSED = re.compile(rf"{END_OF_PARAMETER}>(\n?)\Z")
_MOST_TEXT = 512
"""Characters that are looked through for a tag."""


@dataclass(frozen=True, slots=True)
class Spot:
    """A part of a call, or what stands around calls ("outside").

    Attributes:
        kind: as of `HeldPlace`.
        tool: whose call it is.
        complete: names of the arguments that have come.
        key: of the one that comes.
        text: what was said at this spot, as far as tags may stand in it.
        matcher: follows its form; None where it has none.
    """

    kind: Literal["outside", "tag", "between", "value", "text", "behind"]
    tool: str = ""
    complete: frozenset[str] = frozenset()
    key: str = ""
    text: str = ""
    matcher: FormMatcher | None = None


class CallsAhead:
    """Follows drafts from spot to spot, and knows what it said of them once they are certain.

    The parser is not asked: it reads what is certain, and drafts are not. So rows behind the first spot are
    guesses. They have to be held against what the parser says once the drafts are certain. A wrong guess
    costs the drafts behind it.
    """

    def __init__(self, forms: HeldForms, tokenizer: Tokenizer) -> None:
        self._forms = forms
        self._tokenizer = tokenizer
        self._texts: dict[int, str] = {}
        # By the drafts before it, so that a mask is made once.
        self._spots: dict[tuple[int, ...], Spot] = {}
        # The last drafts and their rows, as far as they are not certain yet.
        self._drafts: tuple[int, ...] = ()
        self._rows: list[NDArray[np.uint32] | None] = []
        self._is_sure = True
        """Whether those rows are right if the text stands in the same place still."""

    @property
    def has_begun(self) -> bool:
        """Whether it knows where the text that is certain ends now."""
        return bool(self._spots)

    def begin(self, spot: Spot) -> None:
        """The text that is certain ends here."""
        self._spots = {(): replace(spot, text=spot.text[-_MOST_TEXT:])}

    def noted(self, token_ids: Sequence[int], has_moved: bool) -> bool:
        """These tokens are certain now; `begin` has to come before drafts are followed again.

        Args:
            has_moved: the text stands in another place than before.

        Returns:
            Whether the next token's row was a guess.
        """
        self._spots = {}
        count = len(token_ids)
        as_drafted = self._drafts[:count] == tuple(token_ids)
        self._drafts = self._drafts[count:] if as_drafted else ()
        self._rows = self._rows[count:] if as_drafted else []
        if has_moved:
            self._is_sure = False
        return bool(self._rows) and not self._is_sure

    def has_guessed(self, row: NDArray[np.uint32] | None) -> bool:
        """Whether the next token's row is what `noted` says was guessed."""
        guess = self._rows[0]
        if guess is None or row is None:
            return guess is row
        return guess is row or np.array_equal(guess, row)

    def allowed(self, drafts: Sequence[int]) -> list[NDArray[np.uint32] | None]:
        """See `FormMatcher.allowed`."""
        rows: list[NDArray[np.uint32] | None] = []
        drafts = tuple(drafts)
        while True:
            at = len(rows)
            spot, behind = self._spots[drafts[:at]], drafts[at:]
            own, end = self._of(spot, behind)
            rows += own[:end]
            if end is None:
                break
            if drafts[: at + end] not in self._spots:
                text = spot.text + "".join(map(self._text, behind[:end]))
                try:
                    next_spot = self._next(spot, text)
                except InputError:
                    # A form cannot be followed: the answer ends for that if it comes there.
                    next_spot = Spot("outside")
                self._spots[drafts[: at + end]] = next_spot
        self._drafts, self._rows, self._is_sure = drafts, rows, len(self._spots) == 1
        return rows

    def _of(self, spot: Spot, drafts: Sequence[int]) -> tuple[list[NDArray[np.uint32] | None], int | None]:
        """Rows at one spot, and how many drafts lead to the next; None for not all of them together."""
        if spot.matcher is not None:
            return spot.matcher.allowed(drafts), spot.matcher.completed_by(drafts)
        is_tag, text = spot.kind == "tag", spot.text
        row = self._forms.in_tag if is_tag else None
        for place, draft in enumerate(drafts):
            text += self._text(draft)
            if self._is_in_tag(spot.tool, text) != is_tag:
                return [row] * (place + 1), place + 1
        return [row] * (len(drafts) + 1), None

    def _is_in_tag(self, tool: str, text: str) -> bool:
        """Whether a text ends in a tag that may end an argument, or, without a tool, begin a call."""
        if tool:
            return text.endswith(END_OF_PARAMETER)
        begun = name_begun(text, FUNCTION) if FUNCTION in text else None
        return begun is not None and begun.may_be_of(self._forms.tools)

    def _next(self, spot: Spot, text: str) -> Spot:
        """Where a text leads that came to an end of its spot."""
        if spot.kind == "value":
            if self._forms.tools[spot.tool].takes_one:
                return Spot("outside")
            return self._between(spot.tool, spot.complete | {spot.key})
        if spot.kind == "tag":
            return self._behind_tag(spot, text)
        if spot.kind in ("outside", "text"):
            return replace(spot, kind="tag", text=text)
        found = _ARGUMENT.search(text)
        if found is None:
            return Spot("outside")
        complete = spot.complete | {spot.key} if spot.kind == "behind" else spot.complete
        key = found.group(1)
        matcher = self._forms.value(spot.tool, key)
        return Spot("text" if matcher is None else "value", spot.tool, complete, key, "", matcher)

    def _behind_tag(self, spot: Spot, text: str) -> Spot:
        if (call := _CALL.search(text)) and call.group(1) in self._forms.tools:
            return self._between(call.group(1), frozenset())
        closed = _CLOSED.search(text)
        if not spot.tool or closed is None:
            # Not the tag that it might have been.
            return replace(spot, kind="text" if spot.tool else "outside", text=text)
        matcher = self._forms.behind(spot.tool, spot.complete | {spot.key})
        if not matcher.takes(self._tokenizer.encode(closed.group(1))):
            return Spot("outside")
        return replace(spot, kind="behind", text=closed.group(1), matcher=matcher)

    def _between(self, tool: str, complete: frozenset[str]) -> Spot:
        return Spot("between", tool, complete, matcher=self._forms.between(tool, complete))

    def _text(self, token_id: int) -> str:
        if token_id not in self._texts:
            self._texts[token_id] = self._tokenizer.decode([token_id], skip_special=False)
        return self._texts[token_id]
