"""What chunks say, those that our own server writes and those that somebody else makes up."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.api.chat_answer import ChatWriter
from orchestrator.api.errors import lost
from orchestrator.api.tools import Tools
from orchestrator.chat.chunks import Ended, Piece, Said, Told, read_chunk
from orchestrator.chat.figures import AnswerTokens
from orchestrator.serving.answer import Finished, Usage
from placement.errors import AnswerLost, NotServed
from tests.orchestrator.api.scripted import THOUGHT

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = ("choices", "usage", "delta", "content", "finish_reason", "prompt_tokens_details", "error", "message")
CHUNKS = st.fixed_dictionaries({}, optional=dict.fromkeys(NAMES, JSON))


def writer() -> ChatWriter:
    return ChatWriter("a1", 0, "m", Tools(), 1, with_logprobs=False, usage_at_end=True)


def test_all_that_our_server_streams_is_understood() -> None:
    usage = Usage(12, 5, 7, reasoning_tokens=3, drafted=10, accepted=6)
    made = writer()
    events = (*THOUGHT[:-1], Finished("length", usage))
    chunks = [chunk for event in events for chunk in made.take(0, event)] + made.end()  # type: ignore[arg-type]
    said: list[Said] = [one for chunk in chunks for one in read_chunk(json.dumps(chunk))]
    assert said == [
        Piece("let me ", is_reasoning=True),
        Piece("think", is_reasoning=True),
        Piece("42"),
        Ended("length"),
        Told(AnswerTokens(prompt=12, cached=5, completion=7, reasoning=3, drafted=10, accepted=6)),
    ]


def test_an_answer_that_our_server_breaks_off_says_why() -> None:
    (chunk,) = writer().failed(lost("den is gone"))
    with pytest.raises(AnswerLost, match=r"broke off: den is gone"):
        read_chunk(json.dumps(chunk))


@pytest.mark.parametrize(
    "data", ["", "{", "[" * 100_000, "[]", "3", "{}", '{"choices": 3}', '{"choices": [3]}']
)
def test_what_is_no_chunk_is_refused(data: str) -> None:
    with pytest.raises(NotServed, match="expected a chunk"):
        read_chunk(data)


@pytest.mark.parametrize("number", [-1, 1.5, "7", True, 10**30])
def test_a_number_of_tokens_that_is_none_is_refused(number: Any) -> None:
    with pytest.raises(NotServed, match="completion_tokens"):
        read_chunk(json.dumps({"choices": [], "usage": {"completion_tokens": number}}))


@given(JSON | CHUNKS | st.builds(lambda inner: {"choices": [inner]}, JSON | CHUNKS))
def test_nothing_that_is_made_up_does_harm(document: Any) -> None:
    with suppress(NotServed):
        read_chunk(json.dumps(document))
