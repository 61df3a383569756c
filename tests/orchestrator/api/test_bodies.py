"""Bodies of requests within bounds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

from orchestrator.api.bodies import MOST_BRACKETS, MOST_DEPTH, ClientLeft, parse, read_body
from orchestrator.api.errors import ApiError
from placement.files.quote import quote

NUMBERS = st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def read(messages: Sequence[Message], most_bytes: int = 100) -> bytes:
    left = list(messages)

    async def receive() -> Message:
        if not left:
            await asyncio.Event().wait()
        return left.pop(0)

    return asyncio.run(read_body(receive, most_bytes, 0.05))


def part(data: bytes, more: bool = True) -> Message:
    return {"type": "http.request", "body": data, "more_body": more}


def test_a_body_comes_in_parts() -> None:
    assert read([part(b"ab"), part(b""), part(b"c", more=False)]) == b"abc"


def test_a_body_is_counted_as_it_comes() -> None:
    assert len(read([part(b"x" * 50), part(b"x" * 50, more=False)])) == 100
    with pytest.raises(ApiError, match="100 bytes") as caught:
        read([part(b"x" * 60), part(b"x" * 60)])
    assert caught.value.status == 413


@pytest.mark.parametrize("text", [r"\u003a", r"\\u003A", r"\\:", r"\:u003a"])
def test_a_backslash_before_u003a_is_no_colon(text: str) -> None:
    assert parse(json.dumps({text: [text]}).encode()) == {text: [text]}


def test_a_slow_sender_is_not_waited_for() -> None:
    with pytest.raises(ApiError) as caught:
        read([part(b"{")])
    assert caught.value.status == 408


def test_a_sender_that_leaves_is_gone() -> None:
    with pytest.raises(ClientLeft):
        read([part(b"{"), {"type": "http.disconnect"}])


@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_an_object_is_read_as_it_was_written(document: dict[str, object]) -> None:
    assert parse(json.dumps(document).encode()) == document


@given(st.binary(max_size=200))
def test_any_bytes_are_an_object_or_at_fault(body: bytes) -> None:
    try:
        found: object = parse(body)
    except ApiError as error:
        found = {"status": error.status}
    assert isinstance(found, dict)
    assert found.get("status", 400) == 400


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b'{"a": "\xc3\x28"}', "not UTF-8"),
        (b"{", "not JSON"),
        (b"{} {}", "not JSON"),
        (b"[]", "array"),
        (b'"a"', "string"),
        (b"3", "expected an object"),
        (b'{"a": NaN}', "not JSON"),
        (b'{"a": -Infinity}', "not JSON"),
        (b'{"a": [1e999]}', "not finite"),
        (b'{"a": "\\ud800"}', "not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"a": ' + b"[" * MOST_DEPTH + b"]" * MOST_DEPTH + b"}", "nests"),
        (b'{"a": ' * 100_000, "not JSON"),
        (b'{"a": [' + b"[]," * MOST_BRACKETS + b"[]]}", "brackets"),
    ],
)
def test_a_body_that_is_no_object_is_refused(body: bytes, words: str) -> None:
    with pytest.raises(ApiError, match=words) as caught:
        parse(body)
    assert caught.value.status == 400


@given(st.dictionaries(st.text(), JSON, min_size=1, max_size=5), st.data())
def test_a_key_that_stands_twice_is_named(document: dict[str, object], data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(document)))
    inner = json.dumps(document)[:-1] + f", {json.dumps(key, ensure_ascii=data.draw(st.booleans()))}: 1}}"
    for body in (inner, f'{{"a": [{{}}, {inner}]}}'):
        with pytest.raises(ApiError, match="twice") as caught:
            parse(body.encode())
        assert caught.value.status == 400
        assert caught.value.param is None
        assert quote(key) in caught.value.message


ODD = st.text(':\\u03aA"{}[],', max_size=8)
TRICKY = st.recursive(
    ODD, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ODD, inner, max_size=3), max_leaves=8
)


def written(value: object, data: st.DataObject) -> str:
    """As JSON, with some colons of its texts escaped."""
    if isinstance(value, dict):
        return f"{{{','.join(f'{written(key, data)} : {written(one, data)}' for key, one in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(written(one, data) for one in value)}]"
    return json.dumps(value).replace(":", data.draw(st.sampled_from([":", "\\u003a", "\\u003A"])))


@given(st.dictionaries(ODD, TRICKY, min_size=1, max_size=4), st.data())
def test_colons_of_texts_are_told_from_those_behind_keys(
    document: dict[str, object], data: st.DataObject
) -> None:
    body = written(document, data)
    assert parse(body.encode()) == document
    again = written({data.draw(st.sampled_from(sorted(document))): data.draw(TRICKY)}, data)[1:-1]
    for twice in (f"{body[:-1]},{again}}}", f"{{{again},{body[1:]}"):
        with pytest.raises(ApiError, match="twice"):
            parse(twice.encode())


def test_a_key_that_stands_twice_among_very_many_is_not_named() -> None:
    pairs = [f'"{key}":1' for key in (*range(100_000), 7)]
    with pytest.raises(ApiError, match="a key stands twice"):
        parse(f"{{{','.join(pairs)}}}".encode())


def test_the_same_key_may_stand_in_several_objects_and_in_texts() -> None:
    document = {"a": {"a": 1}, "b": [{"a": 1}, {"a": 2}], "c": '{"a": 1, "a": 2}'}
    assert parse(json.dumps(document).encode()) == document


def test_a_body_may_nest_as_deep_as_the_limit() -> None:
    depth = MOST_DEPTH - 1
    assert parse(b'{"a": ' + b"[" * depth + b"]" * depth + b"}")
