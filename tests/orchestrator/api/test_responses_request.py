"""Responses asked for, as the engine is asked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from orchestrator.api.carried import sealed
from orchestrator.api.errors import ApiError
from orchestrator.api.fields import RESPONSES
from orchestrator.api.responses_models import ResponseBody
from orchestrator.api.responses_request import ResponseAsked, echo, response_asked
from orchestrator.api.tools import Tool
from orchestrator.api.turns import PICTURE_NOTE
from orchestrator.api.validated import validated
from orchestrator.serving.request import Conversation

SHELL = {"type": "function", "name": "shell", "strict": False, "parameters": {"type": "object"}}
PATCH = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Edits files.",
    "format": {"type": "grammar", "syntax": "regex", "definition": "a+"},
}
FILES = {
    "type": "namespace",
    "name": "files",
    "description": "d",
    "tools": [{"type": "function", "name": "read"}],
}
USER = {"role": "user", "content": "hi"}


def body(**fields: Any) -> ResponseBody:
    return validated({"model": "m", "input": "hi", **fields}, RESPONSES, ResponseBody)


def asked(
    history: Sequence[Any] = (), stored: Mapping[str, Any] | None = None, **fields: Any
) -> ResponseAsked:
    return response_asked(body(**fields), history, (stored or {}).get, "ann", 99)


def prompt(**fields: Any) -> Conversation:
    found = asked(**fields).request.prompt
    assert isinstance(found, Conversation)
    return found


def test_a_text_is_a_message_of_the_user_after_the_instructions() -> None:
    found = asked(
        instructions="be brief", max_output_tokens=5, reasoning={"effort": "low", "summary": "auto"}
    )
    assert isinstance(found.request.prompt, Conversation)
    assert found.request.prompt.messages == (
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
    )
    assert found.request.max_tokens == 5
    assert found.request.reasoning_tokens == 2048
    assert found.items == ({"type": "message", "role": "user", "content": "hi"},)


def test_items_become_turns_of_the_template_as_codex_sends_them() -> None:
    found = prompt(
        instructions="You are Codex.",
        tools=[SHELL, PATCH],
        input=[
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "be safe"}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "fix it"}]},
            {"type": "reasoning", "summary": [], "encrypted_content": sealed("look first")},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
            {"type": "function_call", "name": "shell", "arguments": '{"cmd": "ls"}', "call_id": "c1"},
            {"type": "custom_tool_call", "name": "apply_patch", "input": "***", "call_id": "c2"},
            {"type": "function_call_output", "call_id": "c1", "output": "a.py"},
            {"type": "custom_tool_call_output", "call_id": "c2", "output": [{"type": "input_image"}]},
        ],
    ).messages
    assert found[0]["content"] == "You are Codex.\n\nbe safe"
    assert found[2]["reasoning_content"] == "look first"
    assert found[2]["content"] == "I look."
    assert [call["function"]["arguments"] for call in found[2]["tool_calls"]] == [
        {"cmd": "ls"},
        {"input": "***"},
    ]
    assert found[3] == {"role": "tool", "tool_call_id": "c1", "content": "a.py"}
    assert found[4]["content"] == PICTURE_NOTE


def test_reasoning_is_taken_from_wherever_it_is() -> None:
    def reasoning(**fields: Any) -> str:
        items = [
            USER,
            {"type": "reasoning", "id": "rs", **fields},
            {"role": "assistant", "content": "x"},
            USER,
        ]
        return str(prompt(input=items).messages[1].get("reasoning_content"))

    text = {"type": "reasoning_text", "text": "open"}
    assert reasoning(summary=[], content=[text], encrypted_content=sealed("sealed")) == "open"
    assert (
        reasoning(summary=[{"type": "summary_text", "text": "short"}], encrypted_content=sealed("sealed"))
        == "sealed"
    )
    assert (
        reasoning(summary=[{"type": "summary_text", "text": "short"}], encrypted_content="foreign") == "short"
    )


def test_it_goes_on_from_the_items_before() -> None:
    before = (
        {"type": "message", "role": "user", "content": "1"},
        {"type": "message", "role": "assistant", "content": "2"},
    )
    found = asked(before, input="3")
    assert isinstance(found.request.prompt, Conversation)
    assert [turn["content"] for turn in found.request.prompt.messages] == ["1", "2", "3"]
    assert found.items[:2] == before


def test_references_are_looked_up() -> None:
    item = {"type": "message", "role": "assistant", "content": "2", "id": "msg_1"}
    items = [USER, {"type": "item_reference", "id": "msg_1"}, USER]
    assert asked(stored={"msg_1": item}, input=items).items[1] == item
    with pytest.raises(ApiError, match="not stored") as caught:
        asked(input=items)
    assert caught.value.status == 404


def test_tools_are_told_as_functions_and_led_back() -> None:
    found = asked(tools=[SHELL, PATCH, FILES, {"type": "web_search"}])
    assert isinstance(found.request.prompt, Conversation)
    functions = [tool["function"] for tool in found.request.prompt.tools]
    assert [function["name"] for function in functions] == ["shell", "apply_patch", "files__read"]
    assert functions[1]["parameters"]["properties"]["input"]["pattern"] == "a+"
    assert "strict" not in functions[0]
    assert found.tools.get("files__read") == Tool("read", namespace="files")
    assert found.tools.get("apply_patch").is_custom
    call = {"type": "function_call", "name": "read", "namespace": "files", "arguments": "{}", "call_id": "c"}
    assert prompt(input=[USER, call]).messages[1]["tool_calls"][0]["function"]["name"] == "files__read"


@pytest.mark.parametrize(
    ("choice", "told", "num_tools"),
    [
        ("required", "required", 3),
        ({"type": "function", "name": "shell"}, "shell", 3),
        ({"type": "custom", "name": "apply_patch"}, "apply_patch", 3),
        ({"type": "function", "name": "read", "namespace": "files"}, "files__read", 3),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "shell"}]},
            "auto",
            1,
        ),
    ],
)
def test_choices_of_tools(choice: Any, told: str, num_tools: int) -> None:
    found = prompt(tools=[SHELL, PATCH, FILES], tool_choice=choice, parallel_tool_calls=False)
    assert found.tool_choice == told
    assert len(found.tools) == num_tools
    assert not found.parallel_tool_calls


def test_what_is_included_is_what_was_asked_for() -> None:
    assert not asked().with_encrypted
    assert asked(include=["reasoning.encrypted_content", "web_search_call.results"]).with_encrypted
    assert asked().request.top_logprobs is None
    assert asked(top_logprobs=3).request.top_logprobs == 3
    assert asked(include=["message.output_text.logprobs"]).request.top_logprobs == 0


def test_forms_of_answers() -> None:
    schema = {"type": "object"}
    form = {"type": "json_schema", "name": "x", "schema": schema, "strict": True}
    output = asked(text={"format": form, "verbosity": "low"}).request.output
    assert output is not None
    assert json.loads(output.value) == schema
    assert asked(text={"format": {"type": "text"}}).request.output is None


def test_a_response_repeats_its_request() -> None:
    shown = echo(body(metadata={"a": "b"}, tools=[SHELL], temperature=0.5, previous_response_id="resp_1"))
    assert shown["metadata"] == {"a": "b"}
    assert shown["tools"][0]["name"] == "shell"
    assert shown["temperature"] == 0.5
    assert shown["previous_response_id"] == "resp_1"
    assert shown["tool_choice"] == "auto"


def test_too_many_items_are_said_to_be_too_many() -> None:
    with pytest.raises(ApiError, match="input: expected at most 20,000"):
        body(input=[USER] * 20_001)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": [{"type": "mcp_call", "id": "x"}]}, "input.0"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0"),
        ({"input": [USER, {"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "x"}]}, "input.0.arguments"),
        ({"tools": [{"type": "file_search"}]}, "tools.0.type"),
        ({"tools": [FILES, {"type": "function", "name": "files__read"}]}, "tools"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"reasoning": {"effort": "x"}}, "reasoning.effort"),
        ({"previous_response_id": 3}, "previous_response_id"),
        # As the chat's form has it.
        ({"text": {"format": {"type": "json_schema", "json_schema": {"schema": {}}}}}, "text.format.schema"),
    ],
)
def test_a_field_at_fault_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        asked(**fields)
    assert caught.value.status == 400
    assert caught.value.param == param
