"""A message shows a glimpse of what was found, whatever that is."""

from __future__ import annotations

from placement.files.quote import MOST_OF_LINE, MOST_QUOTED, first_line, one_line, quote


def test_short_values_are_shown_as_python_writes_them() -> None:
    assert quote("a\n") == "'a\\n'"
    assert quote({"a": [1, 2.5, None]}) == "{'a': [1, 2.5, None]}"


def test_long_nested_and_enormous_values_are_cut() -> None:
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    for value in ("x" * 10**7, b"x" * 10**7, list(range(10**5)), nested, 10**10_000):
        assert len(quote(value)) <= MOST_QUOTED + 8
    # Taken apart here: Python's own way to free so deep a list is to call itself.
    while nested:
        nested = nested[0]  # type: ignore[assignment]


def test_words_of_others_become_one_line() -> None:
    assert one_line("a\n  b\t\x1b[31mc\r\n") == "a b [31mc"
    assert one_line("é" * MOST_OF_LINE) == "é" * MOST_OF_LINE
    assert one_line("x" * 10**7) == "x" * MOST_OF_LINE + "…"
    assert one_line("a" + " " * 10**7 + "b") == "a…"
    assert one_line("") == ""


def test_a_long_error_is_its_first_line_and_a_silent_one_its_type() -> None:
    assert first_line(OSError("\n no room\nTraceback")) == "no room"
    assert first_line(KeyboardInterrupt()) == "KeyboardInterrupt"
