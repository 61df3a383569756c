"""Chat completions from the engine's events; what is streamed and what comes whole say the same."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from orchestrator.api.chat_answer import FINISH_REASONS, ChatWriter
from orchestrator.api.errors import lost
from orchestrator.api.tools import Tool, Tools
from orchestrator.serving.answer import AnswerEvent, FinishReason, Started, Text
from tests.orchestrator.api.random_scripts import scripts
from tests.orchestrator.api.scripted import HELLO, PATCH, STARTED, TWO_CALLS, Script, finished

TOOLS = Tools(tools={"apply_patch": Tool("apply_patch", is_custom=True)})


def writer(num_choices: int = 1, *, logprobs: bool = False, usage: bool = False) -> ChatWriter:
    return ChatWriter("abc", 7, "m", TOOLS, num_choices, with_logprobs=logprobs, usage_at_end=usage)


def events(script: Script) -> list[AnswerEvent]:
    return [step for step in script if not isinstance(step, float | Exception)]  # type: ignore[misc]


def played(made: ChatWriter, script: Script, choice: int = 0) -> list[Any]:
    return [chunk for event in events(script) for chunk in made.take(choice, event)]


def joined(chunks: list[Any], choice: int = 0) -> dict[str, Any]:
    """A message as a client puts it together."""
    message: dict[str, Any] = {}
    calls: list[dict[str, Any]] = []
    for chunk in chunks:
        for part in chunk["choices"]:
            if part["index"] != choice:
                continue
            for name, value in part["delta"].items():
                if name == "tool_calls":
                    for piece in value:
                        if piece["index"] == len(calls):
                            calls.append(piece)
                        else:
                            kind = "custom" if "custom" in piece else "function"
                            field = "input" if kind == "custom" else "arguments"
                            calls[piece["index"]][kind][field] += piece[kind][field]
                else:
                    message[name] = message.get(name, "") + value
    if calls:
        message["tool_calls"] = [{k: v for k, v in call.items() if k != "index"} for call in calls]
    return message


@given(scripts())
def test_a_stream_joins_to_the_message_that_comes_whole(script: Script) -> None:
    streaming, made = writer(), writer()
    shown = joined(played(streaming, script))
    played(made, script)
    message = made.whole()["choices"][0]["message"]
    assert message.pop("refusal") is None
    message["content"] = message["content"] or ""
    assert shown == message


def test_calls_have_their_index_and_an_id_of_their_own() -> None:
    made = writer()
    played(made, TWO_CALLS)
    calls = made.whole()["choices"][0]["message"]["tool_calls"]
    assert [call["function"]["arguments"] for call in calls] == ['{"city": "Oslo"}', '{"city": "Rome"}']
    assert len({call["id"] for call in calls}) == 2
    assert made.whole()["choices"][0]["finish_reason"] == "tool_calls"


def test_a_custom_tools_text_comes_out_of_its_json() -> None:
    made = writer()
    played(made, PATCH)
    call = made.whole()["choices"][0]["message"]["tool_calls"][0]
    assert call["type"] == "custom"
    assert call["custom"] == {"name": "apply_patch", "input": "*** Begin\n*** End"}


def test_a_custom_tools_text_is_streamed_and_stays_bare_where_it_is_cut() -> None:
    made = writer()
    script = (*PATCH[:3], finished("length"))
    whole_call = {"name": "apply_patch", "input": "*** Begin\n"}
    assert joined(played(made, script))["tool_calls"][0]["custom"] == whole_call
    assert made.whole()["choices"][0]["message"]["tool_calls"][0]["custom"] == whole_call


def test_logprobs_are_shown_only_where_they_are_wanted() -> None:
    made = writer(logprobs=True)
    chunks = played(made, HELLO)
    streamed = [chunk["choices"][0]["logprobs"]["content"][0] for chunk in chunks[1:3]]
    assert streamed == made.whole()["choices"][0]["logprobs"]["content"]
    assert streamed[0]["token"] == "Hel"
    assert streamed[0]["bytes"] == [72, 101, 108]
    assert [top["token"] for top in streamed[0]["top_logprobs"]] == ["Hel", "other"]
    quiet = writer()
    assert {chunk["choices"][0]["logprobs"] for chunk in played(quiet, HELLO)} == {None}
    assert quiet.whole()["choices"][0]["logprobs"] is None


def test_several_answers_keep_apart_and_their_tokens_add_up() -> None:
    made = writer(2, usage=True)
    chunks = made.take(0, STARTED) + made.take(1, Started(12, 12))
    chunks += made.take(1, Text("one")) + made.take(0, Text("zero"))
    chunks += made.take(1, finished()) + made.take(0, finished("length"))
    assert joined(chunks, 0)["content"] == "zero"
    assert joined(chunks, 1)["content"] == "one"
    assert [choice["finish_reason"] for choice in made.whole()["choices"]] == ["length", "stop"]
    assert all(chunk["usage"] is None for chunk in chunks)
    (last,) = made.end()
    assert last["choices"] == []
    assert last["usage"] == made.whole()["usage"]
    assert last["usage"]["prompt_tokens"] == 12
    assert last["usage"]["completion_tokens"] == 14
    assert last["usage"]["total_tokens"] == 26
    assert last["usage"]["prompt_tokens_details"]["cached_tokens"] == 5
    assert last["usage"]["completion_tokens_details"]["reasoning_tokens"] == 6


def test_without_the_option_a_stream_has_no_usage() -> None:
    made = writer()
    assert all("usage" not in chunk for chunk in played(made, HELLO))
    assert made.end() == []


@pytest.mark.parametrize(("reason", "word"), FINISH_REASONS.items())
def test_every_end_has_a_word_that_clients_know(reason: FinishReason, word: str) -> None:
    made = writer()
    played(made, (STARTED, finished(reason)))
    choice = made.whole()["choices"][0]
    assert choice["finish_reason"] == word
    assert word in ("stop", "length", "tool_calls")
    assert choice["finish_detail"] == reason


def test_a_stop_text_is_named() -> None:
    made = writer()
    played(made, (STARTED, finished("stop_text", "END")))
    assert made.whole()["choices"][0]["stop_reason"] == "END"


def test_a_stream_that_breaks_off_says_that_it_may_be_tried_again() -> None:
    (chunk,) = writer().failed(lost("box 3 is gone"))
    assert chunk["error"]["code"] == "cluster_lost"
    assert "send the same request again" in chunk["error"]["message"]
    assert writer().frame(chunk).startswith(b'data: {"error":')
