"""Responses from the engine's events; what is streamed and what comes whole say the same."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from orchestrator.api.carried import opened
from orchestrator.api.errors import lost, refused
from orchestrator.api.responses_answer import ResponseWriter
from orchestrator.api.responses_models import ITEMS
from orchestrator.api.tools import Tool, Tools
from orchestrator.serving.answer import FinishReason, Reasoning, Refused, Text
from tests.orchestrator.api.random_scripts import scripts
from tests.orchestrator.api.scripted import CALL, HELLO, PATCH, STARTED, THOUGHT, TWO_CALLS, Script, finished
from tests.orchestrator.api.test_chat_answer import events

TOOLS = Tools(
    tools={"apply_patch": Tool("apply_patch", is_custom=True), "weather": Tool("now", namespace="weather")}
)


def writer(*, encrypted: bool = False, logprobs: bool = False) -> ResponseWriter:
    return ResponseWriter(
        "abc", 7, "m", {"store": True}, TOOLS, lambda: 9, with_encrypted=encrypted, with_logprobs=logprobs
    )


def played(made: ResponseWriter, script: Script) -> list[Any]:
    return [chunk for event in events(script) for chunk in made.take(0, event)] + made.end()


@given(scripts())
def test_events_are_numbered_from_zero_and_framed_by_their_type(script: Script) -> None:
    made = writer()
    chunks = played(made, script)
    assert [chunk["sequence_number"] for chunk in chunks] == list(range(len(chunks)))
    assert [chunk["type"] for chunk in chunks[:2]] == ["response.created", "response.in_progress"]
    assert chunks[-1]["type"] in ("response.completed", "response.incomplete")
    assert made.frame(chunks[0]).startswith(b"event: response.created\ndata: {")


@given(scripts())
def test_a_stream_joins_to_the_items_that_come_whole(script: Script) -> None:
    chunks = played(writer(), script)
    output: list[Any] = []
    texts: dict[int, str] = {}
    for chunk in chunks:
        kind = chunk["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert chunk["output_index"] == len(output)
            assert chunk["item"]["status"] == "in_progress"
            output.append(None)
        elif kind.endswith(".delta"):
            assert chunk["output_index"] == len(output) - 1
            texts[chunk["output_index"]] = texts.get(chunk["output_index"], "") + chunk["delta"]
        elif kind == "output_item.done":
            output[chunk["output_index"]] = chunk["item"]
    whole = chunks[-1]["response"]
    assert output == whole["output"]
    for index, item in enumerate(output):
        content = item.get("content") or [{"text": item.get("arguments", item.get("input"))}]
        assert texts[index] == content[0]["text"]
        is_last = index == len(output) - 1
        assert item["status"] in ("completed", whole["status"] if is_last else "completed")
    assert len({item["id"] for item in output}) == len(output)


@given(scripts())
def test_the_output_can_be_sent_back_as_input(script: Script) -> None:
    made = writer(encrypted=True)
    output = played(made, script)[-1]["response"]["output"]
    assert len(ITEMS.validate_python(output)) == len(output)


def test_a_reasoning_item_can_be_carried_by_the_client() -> None:
    assert "encrypted_content" not in played(writer(), THOUGHT)[-1]["response"]["output"][0]
    item = played(writer(encrypted=True), THOUGHT)[-1]["response"]["output"][0]
    assert item["content"] == [{"type": "reasoning_text", "text": "let me think"}]
    assert opened(item["encrypted_content"]) == "let me think"


def test_calls_lead_back_to_the_clients_names() -> None:
    output = played(writer(), TWO_CALLS)[-1]["response"]["output"]
    assert [(item["name"], item["namespace"]) for item in output[1:]] == [("now", "weather")] * 2
    assert output[1]["call_id"] != output[2]["call_id"]


def test_a_custom_tools_text_comes_out_of_its_json() -> None:
    chunks = played(writer(), PATCH)
    (item,) = chunks[-1]["response"]["output"]
    assert item["type"] == "custom_tool_call"
    assert item["input"] == "*** Begin\n*** End"
    assert "response.custom_tool_call_input.done" in [chunk["type"] for chunk in chunks]


def test_a_custom_tools_text_is_streamed_and_stays_bare_where_it_is_cut() -> None:
    chunks = played(writer(), (*PATCH[:3], finished("length")))
    (item,) = chunks[-1]["response"]["output"]
    assert (item["input"], item["status"]) == ("*** Begin\n", "incomplete")
    deltas = [chunk["delta"] for chunk in chunks if chunk["type"].endswith("_input.delta")]
    assert deltas == ["*** Begin\n"]


def test_reasoning_after_text_is_an_item_of_its_own() -> None:
    script = (STARTED, Reasoning("a"), Text("b"), Reasoning("c"), Text("d"), finished())
    output = played(writer(), script)[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["reasoning", "message"] * 2


def test_logprobs_are_in_the_text_where_they_are_wanted() -> None:
    (item,) = played(writer(logprobs=True), HELLO)[-1]["response"]["output"]
    assert [one["token"] for one in item["content"][0]["logprobs"]] == ["Hel", "lo"]
    (item,) = played(writer(), HELLO)[-1]["response"]["output"]
    assert item["content"][0]["logprobs"] == []


@pytest.mark.parametrize(
    ("reason", "status", "why"),
    [
        ("stop", "completed", None),
        ("tool_calls", "completed", None),
        ("length", "incomplete", "max_output_tokens"),
        ("shutdown", "incomplete", "shutdown"),
        ("loop", "incomplete", "loop"),
    ],
)
def test_an_answer_that_was_cut_is_incomplete(reason: FinishReason, status: str, why: str | None) -> None:
    chunks = played(writer(), (STARTED, Text("x"), finished(reason)))
    response = chunks[-1]["response"]
    assert chunks[-1]["type"] == f"response.{status}"
    assert response["status"] == response["output"][0]["status"] == status
    assert (response["incomplete_details"] or {}).get("reason") == why
    assert response["usage"]["total_tokens"] == 19
    assert response["usage"]["input_tokens_details"]["cached_tokens"] == 5
    assert response["usage"]["output_tokens_details"]["reasoning_tokens"] == 3
    assert response["completed_at"] == 9


def test_a_stream_that_breaks_off_says_that_it_may_be_tried_again() -> None:
    made = writer()
    for event in events(CALL[:4]):
        made.take(0, event)
    (chunk,) = made.failed(lost("box 3 is gone"))
    assert chunk["type"] == "response.failed"
    assert chunk["response"]["status"] == "failed"
    assert chunk["response"]["error"]["code"] == "server_error"
    assert "send the same request again" in chunk["response"]["error"]["message"]
    assert [item["type"] for item in chunk["response"]["output"]] == ["reasoning"]


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("too_long", "context_length_exceeded"),
        ("busy", "rate_limit_exceeded"),
        ("unavailable", "server_error"),
    ],
)
def test_a_late_refusal_has_a_code_that_codex_knows(kind: Any, code: str) -> None:
    (chunk,) = writer().failed(refused(Refused(kind, "no")))
    assert chunk["response"]["error"]["code"] == code
