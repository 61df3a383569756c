"""JSON from others is bounded before it is taken apart."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.errors import InputError
from placement.files.json_file import MOST_DEPTH, expect_object, parse_json, read_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=20,
)


@given(JSON)
def test_any_value_is_read_as_python_reads_it(value: object) -> None:
    text = json.dumps(value)
    assert parse_json(text, InputError, "here", "a value") == value


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_nesting_ends_in_one_line(opening: str) -> None:
    closing = "]" if opening == "[" else "}"
    allowed = opening * MOST_DEPTH + "1" + closing * MOST_DEPTH
    assert parse_json(allowed, InputError, "here", "a value")
    for depth in (MOST_DEPTH + 1, 100_000):
        with pytest.raises(InputError, match="here: nested more than 64 deep; expected a value"):
            parse_json(opening * depth + "1" + closing * depth, InputError, "here", "a value")


def test_brackets_inside_of_texts_are_not_nesting() -> None:
    assert parse_json(json.dumps(['"[[[\\' * 100]), InputError, "here", "a value") == ['"[[[\\' * 100]


def test_an_unfinished_text_of_quotes_takes_no_longer_than_reading_it() -> None:
    # Looking for brackets from every quote anew would take hours: this test would then not end.
    with pytest.raises(InputError, match="not JSON"):
        parse_json('"' + '\\"' * 1_000_000, InputError, "here", "a value")


def test_too_many_values_are_refused() -> None:
    with pytest.raises(InputError, match="here: more than 10 values"):
        parse_json(json.dumps(list(range(20))), InputError, "here", "a value", most_values=10)


def test_errors_name_the_file_and_repeat_little_of_it(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("{" + "x" * 10_000)
    with pytest.raises(InputError) as found:
        read_json(path, InputError, "an object", most_bytes=100_000)
    assert str(found.value).startswith(f"{path}: not JSON: ")
    assert len(str(found.value)) < len(str(path)) + 300
    with pytest.raises(InputError, match="expected a JSON object, found 'xxx"):
        expect_object("x" * 10_000, InputError, "here")


def test_a_long_text_takes_little_memory_beside_itself() -> None:
    text = json.dumps({"a": "x" * 1_000_000 + '\n["\\\\' * 10_000})
    tracemalloc.start()
    parse_json(text, InputError, "x", "y")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * len(text)


def test_a_key_given_twice_is_refused_where_readers_would_keep_one_of_them() -> None:
    assert parse_json('[{"a": 1}, {"a": 2}]', InputError, "here", "a value") == [{"a": 1}, {"a": 2}]
    with pytest.raises(InputError, match=r"^here: key 'a' again in one object: keep one$"):
        parse_json('{"b": {"c": 1, "a": 1, "a": 2}}', InputError, "here", "a value")
    twice = '{"' + "x" * 1000 + '": 1, "' + "x" * 1000 + '": 2}'
    with pytest.raises(InputError, match=r"^here: key '(x{80})'… again in one object: keep one$"):
        parse_json(twice, InputError, "here", "a value")
