"""Texts that end an answer: found as early as can be, with nothing of them sent."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.answers.stop_texts import StopTexts
from tests.examples import examples


def run(pieces: Sequence[str], stops: Sequence[str]) -> tuple[list[str], str | None]:
    search = StopTexts(stops)
    sent = [search.push(piece) for piece in pieces]
    return [*sent, search.finish()], search.found


def expected(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """The same by looking at each beginning of the whole text."""
    for end in range(1, len(text) + 1):
        if found := [stop for stop in stops if stop and text[:end].endswith(stop)]:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


def test_a_text_cut_anywhere_is_found_and_not_sent() -> None:
    assert run(["Hello\nUs", "er: hi"], ["\nUser:"]) == (["Hello", "", ""], "\nUser:")
    assert run(["Hello\nUs", "eful"], ["\nUser:"]) == (["Hello", "\nUseful", ""], None)
    assert run(["Hello\nUs"], ["\nUser:"]) == (["Hello", "\nUs"], None)


def test_only_what_may_become_a_stop_text_is_held_back() -> None:
    search = StopTexts(["abab", "\n\n"])
    assert search.push("xab") == "x"
    assert search.push("a") == ""
    assert search.push("a") == "aba"
    assert search.push("b\n") == "ab"
    assert search.push("y") == "\ny"


def test_nothing_comes_after_a_stop_text() -> None:
    search = StopTexts(["END"])
    assert search.push("a END b") == "a "
    assert (search.push("c"), search.finish()) == ("", "")


def test_no_stop_texts_hold_nothing_back() -> None:
    assert run(["a", "", "b"], []) == (["a", "", "b", ""], None)
    assert run(["ab"], [""]) == (["ab", ""], None)


@given(st.lists(st.text("ab\n", max_size=6), max_size=8), st.lists(st.text("ab\n", max_size=5), max_size=4))
@examples(150)
def test_the_earliest_is_found_however_the_text_is_cut(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    for cut in (pieces, [text], list(text)):
        sent, found = run(cut, stops)
        assert ("".join(sent), found) == expected(text, stops)
