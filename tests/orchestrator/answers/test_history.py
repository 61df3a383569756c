"""Conversations made ready for the chat template."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.answers.argument_text import read_arguments
from orchestrator.answers.history import clean
from orchestrator.answers.tool_schema import tool_schemas
from orchestrator.serving.answer import CallEnded, CallStarted, Reasoning, Text
from orchestrator.serving.request import Conversation
from orchestrator.tokenizer import Tokenizer
from placement.errors import InputError
from tests.orchestrator.answers.tools import TOOLS, parse_pieces

MODEL = Path(__file__).parents[3] / "models" / "potluck-tiny"


def cleaned(*messages: dict[str, Any]) -> list[dict[str, Any]]:
    return [dict(message) for message in clean(Conversation(messages, TOOLS)).messages]


def call(name: str, arguments: Any, call_id: str = "c") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (" \n hi\n\n", "hi"),
        (None, ""),
        ([], ""),
        ([{"type": "text", "text": "a "}, {"type": "text", "text": "b\n"}], "a b"),
        (["a", "b"], "ab"),
    ],
)
@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
def test_contents_become_one_trimmed_text(role: str, content: Any, text: str) -> None:
    assert cleaned({"role": role, "content": content}) == [{"role": role, "content": text}]


@pytest.mark.parametrize(
    ("message", "names"),
    [
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "messages[1].content[0]"),
        ({"role": "user", "content": 3}, "messages[1].content"),
        ({"role": "user", "content": [{"type": "text", "text": 3}]}, "messages[1].content[0]"),
        ({"role": "wizard", "content": "x"}, "messages[1].role"),
        ({"content": "x"}, "messages[1].role"),
        ({"role": "assistant", "tool_calls": "x"}, "messages[1].tool_calls"),
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, "messages[1].tool_calls[0]"),
        ({"role": "assistant", "tool_calls": [3]}, "messages[1].tool_calls[0]"),
    ],
)
def test_what_no_template_can_show_is_refused_by_name(message: dict[str, Any], names: str) -> None:
    with pytest.raises(InputError) as error:
        cleaned(USER, message)
    assert names in str(error.value)


def test_a_developer_speaks_as_the_system() -> None:
    assert cleaned({"role": "developer", "content": "x"}) == [{"role": "system", "content": "x"}]


def test_reasoning_is_kept_after_the_last_question_alone() -> None:
    turn = {"role": "assistant", "content": "a", "reasoning_content": "\nr\n"}
    result = {"role": "user", "content": "<tool_response>x</tool_response>"}
    kept = [message.get("reasoning_content") for message in cleaned(USER, turn, USER, turn, result, turn)]
    assert kept == [None, None, None, "r", None, "r"]
    assert [message.get("reasoning_content") for message in cleaned(turn, turn)] == ["r", "r"]
    assert (
        cleaned(USER, {"role": "assistant", "content": "a", "reasoning": "r"})[1]["reasoning_content"] == "r"
    )


@pytest.mark.parametrize(
    ("content", "text", "reasoning"),
    [
        ("a</think>b</think>", "ab", None),
        ("</think>\n\nb", "b", None),
        ("<think>\nr\n</think>\nb</think>", "b", "r"),
        ("<think> never closed", "<think> never closed", None),
    ],
)
def test_tags_of_reasoning_leave_old_answers(content: str, text: str, reasoning: str | None) -> None:
    found = cleaned(USER, {"role": "assistant", "content": content})[1]
    assert (found["content"], found.get("reasoning_content")) == (text, reasoning)
    user = {"role": "user", "content": content}
    assert cleaned(user) == [user]


@pytest.mark.parametrize(
    ("arguments", "mapping"),
    [
        ({"path": "a", "limit": "3"}, {"path": "a", "limit": 3}),
        ('{"path": "a", "limit": "3"}', {"path": "a", "limit": 3}),
        ('"{\\"path\\": \\"a\\"}"', {"path": "a"}),
        ("{'path': 'a', 'x': None}", {"path": "a", "x": None}),
        ("", {}),
        (" ", {}),
        (None, {}),
        ("null", {}),
        ('{"path": "a", "limit": 3', {"path": "a", "limit": 3}),
        ('{"path": "a", "x": [1, {"y": 2', {"path": "a", "x": [1, {"y": 2}]}),
        ('{"path": "a", "li', {"path": "a"}),
        ('{"path": "a", "limit":', {"path": "a"}),
        ('{"path": "a\\', {"path": "a"}),
        ('{"path": "a, {[', {"path": "a, {["}),
        ("{", {}),
        ("[1]", {"arguments": "[1]"}),
        ("rm -rf", {"arguments": "rm -rf"}),
        ('{"path": "a"}}', {"arguments": '{"path": "a"}}'}),
        ('{"path"] 1', {"arguments": '{"path"] 1'}),
        (3, {"arguments": 3}),
        ("{" * 1000, {"arguments": "{" * 1000}),
    ],
)
def test_arguments_become_mappings_typed_by_their_tool(arguments: Any, mapping: dict[str, Any]) -> None:
    message = {"role": "assistant", "content": None, "tool_calls": [call("read_file", arguments)]}
    found = cleaned(USER, message)[1]
    assert found["tool_calls"][0]["function"] == {"name": "read_file", "arguments": mapping}


@given(st.text(alphabet='{}[]":, \\ab1nul', max_size=40))
def test_no_text_of_arguments_is_an_error(text: str) -> None:
    arguments = read_arguments("{" + text, tool_schemas(TOOLS)["read_file"])
    json.dumps(arguments).encode()


def test_an_unknown_tool_s_arguments_and_flat_calls_are_kept() -> None:
    calls = [call("no_such_tool", '{"limit": "3"}'), {"name": "now"}]
    found = cleaned(USER, {"role": "assistant", "tool_calls": calls})[1]["tool_calls"]
    assert [one["function"]["arguments"] for one in found] == [{"limit": "3"}, {}]
    assert "tool_calls" not in cleaned(USER, {"role": "assistant", "content": "x", "tool_calls": []})[1]


def test_results_come_in_the_order_of_their_calls() -> None:
    calls = [call("now", {}, "a"), call("now", {}, "b"), call("now", {}, "c")]
    turn = {"role": "assistant", "tool_calls": calls}
    results = [{"role": "tool", "tool_call_id": one, "content": one} for one in ("c", "?", "a", "b")]
    found = cleaned(USER, turn, *results, {"role": "tool", "content": "none"}, USER, results[0])
    assert [message["content"] for message in found] == ["hi", "", "a", "b", "c", "?", "none", "hi", "c"]


def test_cleaning_twice_changes_nothing_more() -> None:
    messages = [
        {"role": "system", "content": " x "},
        USER,
        {"role": "assistant", "content": "a</think>", "reasoning": " r", "tool_calls": [call("now", "{}")]},
        {"role": "tool", "tool_call_id": "c", "content": ["y "]},
    ]
    once = clean(Conversation(tuple(messages), TOOLS))
    assert clean(once) == once


def test_the_shipped_template_renders_what_was_cleaned() -> None:
    calls = [
        call("read_file", '{"path": "a.py", "limit": "3"}'),
        call("search", {"query": None, "tags": ["x"]}),
    ]
    messages = cleaned(
        USER,
        {"role": "assistant", "content": " See:\n", "reasoning_content": "\nHm.\n", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "x = 1\n"}]},
    )
    text = Tokenizer.load(MODEL).chat_prompt(messages, tools=TOOLS)
    assert (
        "<|im_start|>assistant\n<think>\nHm.\n</think>\nSee:<tool_call>\n<function=read_file>\n<parameter=path>\n"
        "a.py\n</parameter>\n<parameter=limit>\n3\n</parameter>\n</function>\n</tool_call>" in text
    )
    assert text.endswith(
        "<|im_start|>tool_response\n<tool_response>x = 1</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n<think>\n"
    )


@contextmanager
def counted() -> Iterator[Callable[[], int]]:
    """How many functions were called, which says how much was done on any machine."""
    number = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal number
        number += event in ("call", "c_call")

    before = sys.getprofile()
    # Collecting garbage calls whatever others have asked to be told of it.
    gc.disable()
    sys.setprofile(count)
    try:
        yield lambda: number
    finally:
        sys.setprofile(before)
        gc.enable()


def test_a_conversation_of_500_turns_costs_the_same_in_every_turn() -> None:
    """A scripted agent: each turn reasons, calls a tool in one of several forms, and is given its result."""
    forms = (
        "I look at part {n}.\n</think>\nNext is part {n}.\n<tool_call>\n<function=read_file>\n"
        "<parameter=path>\npart-{n}.py\n</parameter>\n<parameter=limit>\n{n}\n</parameter>\n</function>\n</tool_call>",
        "I look at part {n}.\n<tool_call>\n<function read_file>\n<parameter=parameter=path>\npart-{n}.py\n"
        "<parameter=limit>\n{n}\n</function>",
        "I look at part {n}.</think></think>\n\n<function=read_file>\n<parameter=path>\npart-{n}.py\n"
        "</parameter>\n<parameter=limit>{n}",
    )
    conversation = Conversation(({"role": "system", "content": " You read. "}, USER), TOOLS)
    before: tuple[Any, ...] = ()
    parse_calls, clean_calls = {}, {}
    for turn in range(500):
        number = 1000 + turn
        # Cleaned in some turns, three in a row of each form, so that the test is short.
        if turn % 60 < 6:
            with counted() as calls:
                messages = clean(conversation).messages
                clean_calls[turn] = calls()
            # What was there before is the same again, so that its keys and values can be used again.
            assert messages[: len(before)] == before
            before = messages
        text = forms[turn % 3].format(n=number)
        with counted() as calls:
            events = [one.event for one in parse_pieces([text[at : at + 5] for at in range(0, len(text), 5)])]
            parse_calls[turn] = calls()
        assert isinstance(events[-1], CallEnded)
        assert events[-1].arguments == {"path": f"part-{number}.py", "limit": number}
        started = next(event for event in events if isinstance(event, CallStarted))
        reasoning = "".join(event.text for event in events if isinstance(event, Reasoning))
        assert reasoning == f"I look at part {number}."
        arguments = json.dumps(events[-1].arguments)
        answered = {
            "role": "assistant",
            "content": "".join(event.text for event in events if isinstance(event, Text)),
            "reasoning_content": reasoning,
            "tool_calls": [call(started.name, arguments, f"{turn}{started.call_id}")],
        }
        result = {"role": "tool", "tool_call_id": f"{turn}{started.call_id}", "content": f"part {number}\n"}
        conversation = Conversation((*conversation.messages, answered, result), TOOLS)
    assert {turn: calls for turn, calls in parse_calls.items() if calls != parse_calls[turn % 3]} == {}
    # A turn's messages are cleaned for a number of calls that does not depend on what came before them.
    growth = {
        turn: clean_calls[turn + 3] - clean_calls[turn] for turn in clean_calls if turn + 3 in clean_calls
    }
    assert len(growth) > 20
    assert all(growth[turn] == growth[turn % 60] for turn in growth if turn >= 60)
