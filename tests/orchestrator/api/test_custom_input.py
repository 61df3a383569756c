"""A custom tool's text says the same wherever its JSON is cut."""

from __future__ import annotations

import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.api.custom_input import CustomInput

OTHERS = st.dictionaries(st.text(max_size=3), st.text(max_size=3) | st.integers(), max_size=2)


@given(st.text(max_size=12), OTHERS, st.booleans(), st.lists(st.integers(0, 99)))
def test_pieces_join_to_the_text(
    text: str, others: dict[str, str | int], escaped: bool, cuts: list[int]
) -> None:
    arguments = {"input": text, **{key: value for key, value in others.items() if key != "input"}}
    written = json.dumps(arguments, ensure_ascii=escaped)
    places = sorted({0, *(min(cut, len(written)) for cut in cuts), len(written)})
    made, known = CustomInput(), ""
    for begin, end in pairwise(places):
        known += made.take(written[begin:end])
        assert text.startswith(known)
    assert known == text
    assert made.end(arguments) == ""


def test_a_text_that_is_not_the_first_argument_comes_with_the_calls_end() -> None:
    made = CustomInput()
    assert made.take('{"more": "x", "input": "text') == ""
    assert made.take('"}') == ""
    assert made.end({"more": "x", "input": "text"}) == "text"
    assert CustomInput().end({"more": 1}) == '{"more": 1}'
