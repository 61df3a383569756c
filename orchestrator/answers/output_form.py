"""Answers of a given form: which tokens may come next, by llguidance."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from llguidance._lib import LLParserLimits
from numpy.typing import NDArray

from orchestrator.answers.deep_calls import DeepCalls
from orchestrator.answers.multiples import check_multiples
from orchestrator.sampling import token_bits
from orchestrator.serving.request import OutputForm
from orchestrator.tokenizer import Tokenizer
from placement.errors import InputError
from placement.files.quote import first_line, one_line
from placement.units import size

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

MOST_FORM_BYTES = 256_000
"""Of a schema, expression or grammar; a client's text decides how long compiling it takes."""

Piece = str | OutputForm
"""A text that comes as it is, or one of a form."""

# Compiled forms of calls that are kept: agents send the same tools with each request.
# Long ones take much memory.
_MOST_KEPT = 512
_MOST_KEPT_CHARACTERS = 1_000_000
# A fifth of llguidance's own bounds. Expressions up to those take seconds and gigabytes, and each mask of an
# ambiguous grammar tenths of a second, for which all other answers wait.
_LIMITS = LLParserLimits(initial_lexer_fuel=200_000, max_grammar_size=100_000, step_max_items=10_000)
# As much as indenting takes; small models write blanks for ever where they may.
_JSON: JsonCompileOptions = {"whitespace_pattern": r"[ \n\r\t]{1,24}"}
_ANY_OBJECT = '{"type": "object"}'
_FIELDS = {
    "json": "response_format",
    "json_schema": "the JSON schema",
    "regex": "the regular expression",
    "grammar": "the grammar",
}


class OutputForms:
    """What a model's tokenizer and end tokens make of forms."""

    def __init__(self, tokenizer: Tokenizer, vocab: int, end_ids: Sequence[int]) -> None:
        """`vocab`: logits of a row, which may be more than the tokenizer knows."""
        self._vocab = vocab
        self._texts = tokenizer
        self._kept: OrderedDict[tuple[Piece, ...], LLMatcher] = OrderedDict()
        # The form of a whole answer that was compiled last: several answers to a request have the same.
        self._last: tuple[OutputForm | None, LLMatcher | None] = None, None
        self._kept_characters = 0
        self._alike: dict[re.Pattern[str], NDArray[np.uint32]] = {}
        self._lock = Lock()
        self._deep = DeepCalls()
        self._tokenizer = LLTokenizer(tokenizer.as_json(), n_vocab=vocab, eos_token=list(end_ids))

    def matcher(
        self, form: OutputForm, begins_after: int | None = None, *, then_free: bool = False
    ) -> FormMatcher:
        """Begins an answer of that form.

        Args:
            begins_after: a token before which anything may come, such as the end of reasoning; None for none.
            then_free: anything may come behind the form, too, as soon as it is complete.

        Raises:
            InputError: the form is too long, or is none.
        """
        with self._lock:
            last, compiled = self._last
        if compiled is None or last != form:
            compiled = self._deep.call(lambda: self._alone(form))
        with self._lock:
            self._last = form, compiled
            return FormMatcher(compiled.deep_copy(), compiled, self._vocab, begins_after, then_free)

    def in_call(self, pieces: tuple[Piece, ...]) -> FormMatcher:
        """Begins a part of a call: the pieces one after another, and then anything.

        What was compiled is kept, so that asking again costs nothing. It may be asked from several threads.

        Raises:
            InputError: a form among them is too long, or is none.
        """
        with self._lock:
            found = self._kept.get(pieces)
        if found is None:
            found = self._deep.call(lambda: self._compiled(pieces))
        with self._lock:
            if pieces not in self._kept:
                self._kept_characters += _characters(pieces)
            self._kept[pieces] = found
            self._kept.move_to_end(pieces)
            while len(self._kept) > _MOST_KEPT or self._kept_characters > _MOST_KEPT_CHARACTERS:
                oldest, _ = self._kept.popitem(last=False)
                self._kept_characters -= _characters(oldest)
            return FormMatcher(found.deep_copy(), found, self._vocab, None, then_free=True)

    def tokens_like(self, pattern: re.Pattern[str]) -> NDArray[np.uint32]:
        """A mask of the tokens whose whole text is of a pattern."""
        found = self._alike.get(pattern)
        if found is None:
            texts = (self._texts.decode([token_id], skip_special=False) for token_id in range(self._vocab))
            alike = [token_id for token_id, text in enumerate(texts) if pattern.fullmatch(text)]
            found = self._alike[pattern] = token_bits(self._vocab, alike)
        return found

    def _alone(self, form: OutputForm) -> LLMatcher:
        return self._begun(self._valid(_grammar(form), form.kind), form.kind)

    def _compiled(self, pieces: tuple[Piece, ...]) -> LLMatcher:
        names, grammars, kind = [], [], "grammar"
        for number, piece in enumerate(pieces):
            if isinstance(piece, str):
                names.append(json.dumps(piece, ensure_ascii=False))
            else:
                kind = piece.kind
                # Alone first, so that an error speaks of the client's text.
                grammar = json.loads(self._valid(_grammar(piece), kind))
                names.append(f"@form{number}")
                grammars.append({**grammar["grammars"][0], "name": f"form{number}"})
        top = {"name": "top", "lark_grammar": f"start: {' '.join(names)}"}
        matcher = self._begun(self._valid(json.dumps({"grammars": [top, *grammars]}), kind), kind)
        if isinstance(pieces[0], str):
            # The mask that may take long is the one behind it.
            known = self._texts.encode(pieces[0])
            matcher.consume_tokens(known)
            self._look(matcher, kind)
            matcher.rollback(len(known))
        return matcher

    def _valid(self, grammar: str, kind: str) -> str:
        is_wrong, messages = LLMatcher.validate_grammar_with_warnings(
            grammar, self._tokenizer, limits=_LIMITS
        )
        if is_wrong:
            raise InputError(f"{_FIELDS[kind]} cannot be followed: {one_line(messages[0])}")
        return grammar

    def _begun(self, grammar: str, kind: str) -> LLMatcher:
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=_LIMITS)
        self._look(matcher, kind)
        return matcher

    def _look(self, matcher: LLMatcher, kind: str) -> None:
        """Make the first mask, which may take long. Whoever waits for it here holds up nobody else."""
        matcher.compute_bitmask()
        if matcher.is_error():
            raise InputError(f"{_FIELDS[kind]} takes too much work to be followed; ask for a simpler one")


@dataclass(slots=True)
class FormMatcher:
    """One answer on its way.

    Attributes:
        begins_after: the token that everything before the answer ends with; None once it came.
    """

    _matcher: LLMatcher
    _first: LLMatcher
    """As it began."""
    _vocab: int
    begins_after: int | None
    then_free: bool = False
    _taken: list[int] = field(default_factory=list)
    """What the matcher took since then."""
    _made: tuple[NDArray[np.uint32] | None, ...] = ()
    """Rows for the next token and behind each of `_made_for`."""
    _made_for: tuple[int, ...] = ()
    _breaks_behind: tuple[int, ...] | None = None
    """The next tokens, if it breaks behind them."""

    @property
    def is_broken(self) -> bool:
        """Whether it took too much work, so that tokens are chosen without it now."""
        return self._breaks_behind == () or bool(self._matcher.is_error())

    def note(self, token_ids: Sequence[int]) -> None:
        """These are the next tokens; those that nobody chose are no part of it if it does not allow them."""
        self._made, self._made_for = (), ()
        for token_id in token_ids:
            if self._breaks_behind:
                goes_there = self._breaks_behind[0] == token_id
                self._breaks_behind = self._breaks_behind[1:] if goes_there else None
            if self.begins_after is None:
                self._take([token_id])
            elif token_id == self.begins_after:
                self.begins_after = None

    def copy(self) -> FormMatcher:
        """Another answer that stands where this one does."""
        return replace(self, _matcher=self._matcher.deep_copy(), _taken=list(self._taken))

    def takes(self, token_ids: Sequence[int]) -> bool:
        """Whether the answer may begin with these, which are taken."""
        self._made, self._made_for = (), ()
        return self._take(token_ids) == len(token_ids)

    def allowed(self, drafts: Sequence[int]) -> list[NDArray[np.uint32] | None]:
        """For the next token and for that behind each draft: a bit for each token, None where any may come.

        A row behind a draft that the form does not allow counts for nothing, and gets None. Drafts are chosen
        one after another and verified together, so rows are kept until the next token is noted. Where it
        breaks behind drafts, it does not before they are noted.
        """
        drafts = tuple(drafts)
        begins_after, consumed, dead = self.begins_after, 0, False
        found = list(self._made[: 1 + _common(drafts, self._made_for)])
        if not found:
            found.append(None if begins_after is not None else self._mask())
        was_broken = self._matcher.is_error()
        for place in range(len(drafts) + 1):
            if place == len(found):
                found.append(None if dead or begins_after is not None else self._mask())
                if not dead and self._matcher.is_error():
                    self._breaks_behind = drafts[:place]
            dead = dead or drafts[:place] == self._breaks_behind
            if place == len(drafts):
                break
            if begins_after is not None:
                begins_after = None if drafts[place] == begins_after else begins_after
            elif not dead:
                taken = self._matcher.try_consume_tokens([drafts[place]])
                consumed += taken
                dead = not taken
        self._go_back(consumed, was_broken)
        self._made, self._made_for = tuple(found), drafts
        return found

    def completed_by(self, drafts: Sequence[int]) -> int | None:
        """How many of the drafts complete the form if anything may come behind it; None where they do not."""
        if not self.then_free or self.begins_after is not None or self._matcher.is_stopped():
            return None
        consumed, found, was_broken = 0, None, self._matcher.is_error()
        for draft in drafts:
            if not self._matcher.try_consume_tokens([draft]):
                break
            consumed += 1
            if self._matcher.is_stopped():
                found = consumed
                break
        self._go_back(consumed, was_broken)
        return found

    def _take(self, token_ids: Sequence[int]) -> int:
        taken: int = self._matcher.try_consume_tokens(list(token_ids))
        self._taken += token_ids[:taken]
        return taken

    def _go_back(self, num_drafts: int, was_broken: bool) -> None:
        """Take so many drafts back. A matcher that broke cannot; then another one takes what is certain.

        Args:
            was_broken: before the drafts. It may break at the first of them, of which it takes nothing then.
        """
        broke = self._matcher.is_error() and not was_broken
        if broke or (num_drafts and not self._matcher.rollback(num_drafts)):
            self._matcher = self._first.deep_copy()
            self._matcher.try_consume_tokens(self._taken)

    def _mask(self) -> NDArray[np.uint32] | None:
        if self._matcher.is_error() or (self.then_free and self._matcher.is_stopped()):
            return None
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)
        return bits[: -(-self._vocab // 32)]


def _common(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """With how many tokens both begin."""
    length = min(len(first), len(second))
    while first[:length] != second[:length]:
        length -= 1
    return length


def _characters(pieces: tuple[Piece, ...]) -> int:
    return sum(len(piece if isinstance(piece, str) else piece.value) for piece in pieces)


def _grammar(form: OutputForm) -> str:
    """A form in llguidance's own notation: JSON with one grammar in its `grammars`."""
    what = _FIELDS[form.kind]
    if len(form.value.encode()) > MOST_FORM_BYTES:
        raise InputError(f"{what} is longer than {size(MOST_FORM_BYTES)}; expected a shorter one")
    if form.kind != "regex":
        check_multiples(form.value, what)
    if form.kind == "grammar":
        return json.dumps({"grammars": [{"lark_grammar": form.value}]})
    try:
        if form.kind == "regex":
            return LLMatcher.grammar_from_regex(form.value)
        return LLMatcher.grammar_from_json_schema(form.value or _ANY_OBJECT, overrides=_JSON)
    except ValueError as error:
        raise InputError(f"{what} cannot be followed: {first_line(error)}") from error
