"""Anthropic's messages from the engine's events; what is streamed and what comes whole say the same."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.api.carried import opened
from orchestrator.api.errors import lost
from orchestrator.api.messages_answer import STOP_REASONS, MessageWriter
from orchestrator.api.tools import Tools
from orchestrator.serving.answer import Finished, FinishReason, Prefilled, Usage
from tests.orchestrator.api.random_scripts import scripts
from tests.orchestrator.api.scripted import CALL, HELLO, STARTED, THOUGHT, TWO_CALLS, Script, finished
from tests.orchestrator.api.test_chat_answer import events


def writer(*, shows_thinking: bool = True) -> MessageWriter:
    return MessageWriter("abc", "m", 100, Tools(), shows_thinking=shows_thinking)


def played(made: MessageWriter, script: Script) -> list[Any]:
    return [chunk for event in events(script) for chunk in made.take(0, event)] + made.end()


def joined(chunks: list[Any]) -> list[Any]:
    """Blocks as a client puts them together; a block begins, grows and ends before the next."""
    blocks: list[Any] = []
    inputs: dict[int, str] = {}
    is_open = False
    for chunk in chunks:
        if chunk["type"] == "content_block_start":
            assert not is_open
            assert chunk["index"] == len(blocks)
            blocks.append(dict(chunk["content_block"]))
            is_open = True
        elif chunk["type"] == "content_block_delta":
            assert is_open
            assert chunk["index"] == len(blocks) - 1
            delta = chunk["delta"]
            if delta["type"] == "input_json_delta":
                inputs[chunk["index"]] = inputs.get(chunk["index"], "") + delta["partial_json"]
            else:
                name = delta["type"].removesuffix("_delta")
                blocks[-1][name] += delta[name]
        elif chunk["type"] == "content_block_stop":
            assert is_open
            is_open = False
    assert not is_open
    for index, text in inputs.items():
        blocks[index]["input"] = json.loads(text)
    return blocks


@given(scripts(), st.booleans())
def test_a_stream_joins_to_the_message_that_comes_whole(script: Script, shows: bool) -> None:
    made = writer(shows_thinking=shows)
    chunks = played(made, script)
    assert joined(chunks) == made.whole()["content"]
    assert chunks[0]["type"] == "message_start"
    assert [chunk["type"] for chunk in chunks[-2:]] == ["message_delta", "message_stop"]
    assert chunks[-2]["usage"] == made.whole()["usage"]
    assert chunks[-2]["delta"]["stop_reason"] == made.whole()["stop_reason"]


def test_thinking_has_a_signature_and_calls_an_id_of_their_own() -> None:
    made = writer()
    played(made, TWO_CALLS)
    thinking, first, second = made.whole()["content"]
    assert thinking["signature"]
    assert first["input"] == {"city": "Oslo"}
    assert second["input"] == {"city": "Rome"}
    assert first["id"] != second["id"]
    assert first["id"].replace("_", "").isalnum()


def test_thinking_that_is_left_out_is_in_its_signature() -> None:
    made = writer(shows_thinking=False)
    played(made, THOUGHT)
    thinking, text = made.whole()["content"]
    assert thinking["thinking"] == ""
    assert opened(thinking["signature"]) == "let me think"
    assert text == {"type": "text", "text": "42"}


def test_tokens_of_the_cache_are_no_input_tokens() -> None:
    made = writer()
    start = played(made, HELLO)[0]["message"]["usage"]
    assert (start["input_tokens"], start["cache_read_input_tokens"], start["output_tokens"]) == (7, 5, 0)
    usage = made.whole()["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == 12
    assert usage["cache_creation_input_tokens"] == 0
    assert usage["output_tokens"] == 7


def test_a_prompt_that_is_being_read_shows_as_pings() -> None:
    assert writer().take(0, Prefilled(512)) == [{"type": "ping"}]
    assert writer().waiting() == b'event: ping\ndata: {"type":"ping"}\n\n'


@pytest.mark.parametrize(("reason", "word"), STOP_REASONS.items())
def test_every_end_has_a_word_that_clients_know(reason: FinishReason, word: str) -> None:
    made = writer()
    played(made, (STARTED, finished(reason, "END" if reason == "stop_text" else None)))
    assert made.whole()["stop_reason"] == word
    assert made.whole()["stop_sequence"] == ("END" if reason == "stop_text" else None)


def test_a_full_context_is_not_the_limit_of_the_request() -> None:
    made = writer()
    played(made, (STARTED, Finished("length", Usage(60, 0, 40, 0))))
    assert made.whole()["stop_reason"] == "model_context_window_exceeded"


def test_a_call_that_was_cut_is_closed() -> None:
    made = writer()
    chunks = played(made, (*CALL[:4], finished("length")))
    assert [chunk["type"] for chunk in chunks[-3:]] == ["content_block_stop", "message_delta", "message_stop"]


def test_a_stream_that_breaks_off_says_that_it_may_be_tried_again() -> None:
    (chunk,) = writer().failed(lost("box 3 is gone"))
    assert chunk["error"]["type"] == "overloaded_error"
    assert "send the same request again" in chunk["error"]["message"]
    assert writer().frame(chunk).startswith(b"event: error\n")
