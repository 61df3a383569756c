"""Masks of tokens for answers of a given form."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.answers.output_form import MOST_FORM_BYTES, FormMatcher, OutputForms
from orchestrator.serving.request import OutputForm
from orchestrator.tokenizer import Tokenizer
from placement.errors import InputError

MODEL = Path(__file__).parents[3] / "models" / "potluck-tiny"
VOCAB, END = 4100, 3
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Ada", "Bob"]}, "age": {"type": "integer", "minimum": 1, "maximum": 20}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(MODEL)


@pytest.fixture(scope="module")
def forms(tokenizer: Tokenizer) -> OutputForms:
    return OutputForms(tokenizer, VOCAB, [END])


def tokens_of(bits: np.ndarray | None) -> np.ndarray:
    assert bits is not None
    assert bits.shape == (-(-VOCAB // 32),)
    return np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little"))


def written(tokenizer: Tokenizer, matcher: FormMatcher, seed: int, most: int = 200) -> str:
    """What a model would write that chooses by lot."""
    random, token_ids = np.random.default_rng(seed), []
    while len(token_ids) < most:
        (bits,) = matcher.allowed([])
        token_id = int(random.choice(tokens_of(bits)))
        matcher.note([token_id])
        if token_id == END:
            return tokenizer.decode(token_ids)
        token_ids.append(token_id)
    raise AssertionError("the answer does not end")


def test_whatever_is_chosen_is_of_the_form(tokenizer: Tokenizer, forms: OutputForms) -> None:
    for seed in range(8):
        text = written(tokenizer, forms.matcher(OutputForm("json_schema", json.dumps(SCHEMA))), seed)
        found = json.loads(text)
        assert found["name"] in ("Ada", "Bob")
        assert 1 <= found["age"] <= 20
        text = written(tokenizer, forms.matcher(OutputForm("regex", "[0-9]{3}-(yes|no)")), seed)
        assert re.fullmatch("[0-9]{3}-(yes|no)", text)
        text = written(tokenizer, forms.matcher(OutputForm("grammar", 'start: "a" b+\nb: /[xy]/')), seed)
        assert re.fullmatch("a[xy]+", text)


def test_any_json_object_begins_with_a_brace(tokenizer: Tokenizer, forms: OutputForms) -> None:
    (bits,) = forms.matcher(OutputForm("json")).allowed([])
    assert all(tokenizer.decode([token]).lstrip().startswith(("{", "")) for token in tokens_of(bits))
    assert END not in tokens_of(bits)


def test_rows_behind_drafts_have_the_masks_of_their_own_text(
    tokenizer: Tokenizer, forms: OutputForms
) -> None:
    form = OutputForm("json_schema", json.dumps(SCHEMA))
    matcher, alone = forms.matcher(form), forms.matcher(form)
    drafts = tokenizer.encode('{"name": "Ada"')
    rows = matcher.allowed(drafts)
    assert len(rows) == len(drafts) + 1
    for place, draft in enumerate([*drafts, None]):
        (expected,) = alone.allowed([])
        assert (tokens_of(rows[place]) == tokens_of(expected)).all()
        if draft is not None:
            alone.note([draft])
    # Nothing was taken in.
    assert (tokens_of(matcher.allowed([])[0]) == tokens_of(rows[0])).all()


def test_a_draft_that_is_not_allowed_has_rows_that_count_for_nothing(
    tokenizer: Tokenizer, forms: OutputForms
) -> None:
    matcher = forms.matcher(OutputForm("json_schema", json.dumps(SCHEMA)))
    good, bad = tokenizer.encode("{")[0], tokenizer.encode("x")[0]
    rows = matcher.allowed([good, bad, good])
    assert [row is None for row in rows] == [False, False, True, True]
    matcher.note([good])
    assert (tokens_of(matcher.allowed([])[0]) == tokens_of(rows[1])).all()


def test_rows_do_not_depend_on_drafts_that_were_asked_for_before(
    tokenizer: Tokenizer, forms: OutputForms
) -> None:
    form, luck = OutputForm("json_schema", json.dumps(SCHEMA)), np.random.default_rng(5)
    matcher = forms.matcher(form)
    known = tokenizer.encode('{"name": "Ada", "age": 7}')
    noted: list[int] = []
    for token_id in known:
        # As drafts are chosen, one longer each time, and then others.
        for length in (0, 1, 2, 3, 3, 1, 2):
            drafts = known[len(noted) : len(noted) + length]
            if luck.random() < 0.3 and drafts:
                drafts[-1] = int(luck.integers(VOCAB))
            alone = forms.matcher(form)
            alone.note(noted)
            rows = matcher.allowed(drafts)
            for row, expected in zip(rows, alone.allowed(drafts), strict=True):
                assert (row is None) == (expected is None)
                assert row is None or (row == expected).all()
        matcher.note([token_id])
        noted.append(token_id)


class Counted:
    """A matcher of llguidance that counts the masks it makes."""

    def __init__(self, matcher: Any) -> None:
        self.num_masks = 0
        self._matcher = matcher

    def __getattr__(self, name: str) -> Any:
        self.num_masks += name == "compute_bitmask"
        return getattr(self._matcher, name)


def test_each_mask_is_made_once_while_drafts_are_chosen_and_verified(
    tokenizer: Tokenizer, forms: OutputForms
) -> None:
    matcher = forms.matcher(OutputForm("json_schema", json.dumps(SCHEMA)))
    counted = matcher._matcher = Counted(matcher._matcher)
    drafts = tokenizer.encode('{"name": "Ada"')[:3]
    for length in (0, 1, 2, 3, 3):
        matcher.allowed(drafts[:length])
    assert counted.num_masks == 4
    matcher.note(drafts[:1])
    matcher.allowed([])
    assert counted.num_masks == 5


DEAD_END = OutputForm("grammar", 'start: ("a" E | "b" "c") "d"\nE: /x/ & /y/')


def test_drafts_into_a_dead_end_break_nothing(tokenizer: Tokenizer, forms: OutputForms) -> None:
    a, b, c = (tokenizer.encode(letter)[0] for letter in "abc")
    matcher = forms.matcher(DEAD_END)
    (first,) = matcher.allowed([])
    for drafts in ([a], [a, c], [a, a, a], [b, c]):
        rows = matcher.allowed(drafts)
        assert (tokens_of(rows[0]) == tokens_of(first)).all()
        assert drafts[0] == b or all(row is None for row in rows[2:])
        assert not matcher.is_broken
    matcher.note([b])
    assert not matcher.is_broken
    assert tokens_of(matcher.allowed([])[0]).tolist() == [c]


def test_a_draft_that_takes_too_much_work_breaks_nothing(tokenizer: Tokenizer, forms: OutputForms) -> None:
    many = " | ".join(f'"x{number}"' for number in range(2100))
    form = OutputForm("grammar", f'start: "b" many | "c" "d"\nmany: {many}')
    b, c, d = (tokenizer.encode(letter)[0] for letter in "bcd")
    for matcher in (forms.matcher(form), forms.in_call((form,))):
        for drafts in ([b], [b, c], [c, d], [c, b]):
            rows = matcher.allowed(drafts)
            assert (tokens_of(rows[0]) == sorted([b, c])).all()
            assert (rows[1] is None) == (drafts[0] == b)
            assert matcher.completed_by(drafts) == (2 if drafts == [c, d] and matcher.then_free else None)
            assert not matcher.is_broken
        goes_there = matcher.copy()
        goes_there.note([b])
        assert goes_there.is_broken
        matcher.note([c])
        assert tokens_of(matcher.allowed([b])[0]).tolist() == [d]
        assert not matcher.is_broken


def test_a_dead_end_breaks_once_it_is_reached(tokenizer: Tokenizer, forms: OutputForms) -> None:
    a, b = (tokenizer.encode(letter)[0] for letter in "ab")
    for depth in (0, 1, 3):
        matcher = forms.matcher(DEAD_END, begins_after=b)
        matcher.allowed([b, a, a][:depth])
        assert not matcher.is_broken
        matcher.note([b])
        matcher.allowed([a, b][: max(0, depth - 1)])
        assert not matcher.is_broken
        matcher.note([a])
        # Where a row behind it was made, the token of that row was chosen without the form.
        assert matcher.is_broken == (depth == 3)
        matcher.allowed([])
        assert matcher.is_broken


def test_the_form_begins_behind_the_end_of_reasoning(tokenizer: Tokenizer, forms: OutputForms) -> None:
    end, thought = 2000, 1500
    matcher = forms.matcher(OutputForm("json"), begins_after=end)
    brace = tokenizer.encode("{")[0]
    rows = matcher.allowed([thought, end, brace])
    assert [row is None for row in rows] == [True, True, False, False]
    matcher.note([thought, end])
    assert (tokens_of(matcher.allowed([])[0]) == tokens_of(rows[2])).all()


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (OutputForm("json_schema", '{"type": "foo"}'), "the JSON schema cannot be followed: .*foo"),
        (OutputForm("json_schema", "{bad"), "the JSON schema cannot be followed: "),
        (OutputForm("regex", "(a"), "the regular expression cannot be followed: "),
        (OutputForm("grammar", "start: nobody"), "the grammar cannot be followed: .*nobody"),
        (OutputForm("regex", "a" * (MOST_FORM_BYTES + 1)), "the regular expression is longer than"),
    ],
)
def test_what_is_no_form_is_refused(forms: OutputForms, form: OutputForm, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        forms.matcher(form)
    assert "\n" not in str(caught.value)


def test_a_form_that_takes_too_much_work_is_refused_or_known_to_be_broken(
    tokenizer: Tokenizer, forms: OutputForms
) -> None:
    matcher = forms.matcher(OutputForm("regex", "(a{1000}){1000}"))
    for _ in range(200):
        (bits,) = matcher.allowed([])
        if bits is None:
            break
        matcher.note([int(tokens_of(bits)[-1])])
    assert (bits is None) == matcher.is_broken


def test_a_part_of_a_call_is_its_pieces_one_after_another_and_then_anything(
    tokenizer: Tokenizer, forms: OutputForms
) -> None:
    number = OutputForm("json_schema", '{"type": "integer", "minimum": 10, "maximum": 99}')
    for seed in range(6):
        matcher = forms.in_call(("\n<v>", number, "</v>", OutputForm("grammar", 'start: x\nx: "a" | "b"')))
        random, token_ids = np.random.default_rng(seed), []
        while (bits := matcher.allowed([])[0]) is not None:
            token_ids.append(int(random.choice(tokens_of(bits))))
            matcher.note(token_ids[-1:])
        assert re.fullmatch("\n<v>[1-9][0-9]</v>[ab]", tokenizer.decode(token_ids))


def test_of_a_part_of_a_call_the_form_that_is_none_is_told(forms: OutputForms) -> None:
    with pytest.raises(InputError, match="the regular expression cannot be followed"):
        forms.in_call(("\n", OutputForm("regex", "(a"), "b"))


# As Codex sends it with its tool for patches.
APPLY_PATCH = r"""start: begin_patch hunk+ end_patch
begin_patch: "*** Begin Patch" LF
end_patch: "*** End Patch" LF?

hunk: add_hunk | delete_hunk | update_hunk
add_hunk: "*** Add File: " filename LF add_line+
delete_hunk: "*** Delete File: " filename LF
update_hunk: "*** Update File: " filename LF change_move? change?

filename: /(.+)/
add_line: "+" /(.*)/ LF -> line

change_move: "*** Move to: " filename LF
change: (change_context | change_line)+ eof_line?
change_context: ("@@" | "@@ " /(.+)/) LF
change_line: ("+" | "-" | " ") /(.*)/ LF
eof_line: "*** End of File" LF

%import common.LF
"""
A_PATCH = "*** Begin Patch\n*** Update File: a.py\n@@ def f():\n-    pass\n+    return <1>\n*** End Patch"


def test_a_patch_of_codex_follows_its_grammar(tokenizer: Tokenizer, forms: OutputForms) -> None:
    pieces = ("\n", OutputForm("grammar", APPLY_PATCH), "\n</parameter>\n</function>")
    for patch, fits in (
        (A_PATCH, True),
        (f"{A_PATCH}\n", True),
        (A_PATCH.replace("@@ def", "@ def"), False),
        (A_PATCH.removesuffix("\n*** End Patch"), False),
    ):
        token_ids = tokenizer.encode(f"\n{patch}\n</parameter>\n</function>")
        assert forms.in_call(pieces).takes(token_ids) == fits


def _rules(num: int) -> str:
    return "\n".join(f"r{number}: {'(' * 28}r{number + 1}{')' * 28}" for number in range(num))


@pytest.mark.parametrize(
    "form",
    [
        OutputForm("grammar", f'start: r0\n{_rules(2000)}\nr2000: "x"'),
        OutputForm(
            "json_schema",
            json.dumps(
                {
                    "$ref": "#/$defs/0",
                    "$defs": {
                        **{str(number): {"$ref": f"#/$defs/{number + 1}"} for number in range(5000)},
                        "5000": {"type": "null"},
                    },
                }
            ),
        ),
    ],
)
def test_rules_that_lead_on_and_on_do_not_end_the_process(forms: OutputForms, form: OutputForm) -> None:
    assert tokens_of(forms.matcher(form).allowed([])[0]).size
    assert tokens_of(forms.in_call(("\n", form)).allowed([])[0]).size


@pytest.mark.parametrize(
    "form",
    [
        OutputForm("json_schema", '{"type": "integer", "multipleOf": 9999991}'),
        OutputForm("json_schema", '{"items": [{"multipleOf": 6007}, {"not": {"multipleOf": 0.6007}}]}'),
        OutputForm("grammar", 'start: %json {"multiple\\u004ff": 9999991}'),
        OutputForm("regex", "a?" * 120_000),
    ],
)
def test_forms_that_would_take_gigabytes_are_refused(forms: OutputForms, form: OutputForm) -> None:
    with pytest.raises(InputError, match=r"multiples of|too big"):
        forms.matcher(form)


def test_multiples_that_people_ask_for_are_followed(forms: OutputForms) -> None:
    for multiple in (5, 0.01, 1_000_000, 1024):
        forms.matcher(OutputForm("json_schema", json.dumps({"type": "number", "multipleOf": multiple})))


def test_long_forms_of_calls_are_not_kept_for_ever(tokenizer: Tokenizer) -> None:
    own = OutputForms(tokenizer, VOCAB, [END])
    for number in range(5):
        own.in_call((OutputForm("regex", f"{number}{'x' * 200_000}"),))
    assert len(own._kept) == 4
    for number in range(600):
        own.in_call((f"{number}",))
    assert len(own._kept) == 512


def test_an_ambiguous_grammar_breaks_before_its_masks_take_long(forms: OutputForms) -> None:
    matcher = forms.matcher(OutputForm("grammar", 'start: e "~"\ne: e e | e e e | /[a-z ]/'))
    for _ in range(60):
        (bits,) = matcher.allowed([])
        if bits is None:
            break
        # A word; the last one in the vocabulary.
        matcher.note([int(tokens_of(bits)[-1])])
    assert matcher.is_broken
