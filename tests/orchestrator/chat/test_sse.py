"""Server-sent events, however their bytes are cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.chat.sse import MOST_EVENT_BYTES, EventReader
from placement.errors import NotServed

WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
ENDS = st.sampled_from(["\n", "\r\n", "\r"])
CUTS = st.lists(st.integers(0, 400), max_size=20)


def pieces(content: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(min(cut, len(content)) for cut in cuts), len(content)]
    return [content[start:end] for start, end in pairwise(places)]


@given(st.lists(st.lists(WORDS, min_size=1, max_size=3), max_size=5), ENDS, CUTS)
def test_events_are_the_same_however_they_are_cut(events: list[list[str]], end: str, cuts: list[int]) -> None:
    lines = []
    for event in events:
        lines += [": waiting", "event: x", *(f"data: {line}" for line in event), "id", ""]
    content = end.join([*lines, ""]).encode()
    reader = EventReader()
    found = [data for piece in pieces(content, cuts) for data in reader.push(piece)]
    assert found == ["\n".join(event) for event in events]


def test_an_event_that_is_not_complete_is_not_given() -> None:
    reader = EventReader()
    assert reader.push(b'data: {"a"') == []
    assert reader.push(b": 1}\n") == []
    assert reader.push(b"\n") == ['{"a": 1}']
    assert reader.push(b"\n\n: nothing\n\n") == []


@pytest.mark.parametrize("part", [b"x" * 65_536, b"data:" + b"x" * 65_000 + b"\n", b"data:\n" * 10_000])
def test_an_event_without_end_is_not_kept(part: bytes) -> None:
    reader = EventReader()
    for _ in range(MOST_EVENT_BYTES // len(part)):
        assert reader.push(part) == []
    with pytest.raises(NotServed, match=r"more than 4\.0 MB"):
        reader.push(part)


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(NotServed, match="UTF-8"):
        EventReader().push(b"data: \xff\n")
