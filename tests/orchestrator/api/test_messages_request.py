"""Anthropic's messages, as the engine is asked."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orchestrator.api.carried import opened, sealed, signature
from orchestrator.api.errors import ApiError
from orchestrator.api.fields import COUNT_TOKENS, MESSAGES
from orchestrator.api.messages_models import CountBody, MessagesBody
from orchestrator.api.messages_request import MessageAsked, message_asked, prompt_of
from orchestrator.api.turns import PICTURE_NOTE
from orchestrator.api.validated import validated
from orchestrator.serving.request import Conversation

USER = {"role": "user", "content": "hi"}
WEATHER = {"name": "weather", "description": "d", "input_schema": {"type": "object"}}
STRAY = {"type": "tool_result", "tool_use_id": "t"}
PICTURE = {"type": "image", "source": {"type": "base64", "data": "x"}}


def asked(**fields: Any) -> MessageAsked:
    document = {"model": "m", "max_tokens": 50, "messages": [USER], **fields}
    return message_asked(validated(document, MESSAGES, MessagesBody), "ann", 99)


def prompt(**fields: Any) -> Conversation:
    found = asked(**fields).request.prompt
    assert isinstance(found, Conversation)
    return found


def test_a_plain_request_asks_for_an_answer_without_thinking() -> None:
    request = asked().request
    assert request.prompt == Conversation(({"role": "user", "content": "hi"},))
    assert request.max_tokens == 50
    assert request.reasoning_tokens == 0
    assert request.sampling.seed == 99


@pytest.mark.parametrize(
    ("thinking", "effort", "tokens"),
    [
        ({"type": "disabled"}, None, 0),
        ({"type": "disabled"}, "high", 0),
        ({"type": "enabled", "budget_tokens": 1024}, None, 1024),
        ({"type": "adaptive"}, None, None),
        ({"type": "adaptive"}, "low", 2048),
        ({"type": "adaptive"}, "max", None),
    ],
)
def test_thinking_is_bounded_as_it_is_asked_for(
    thinking: dict[str, Any], effort: str | None, tokens: int | None
) -> None:
    found = asked(thinking=thinking, output_config={"effort": effort}).request
    assert found.reasoning_tokens == tokens


def test_the_prompt_is_the_same_whatever_the_volatile_lines_of_the_system_say() -> None:
    kept = "You are Claude Code.\nKeep x-anthropic-billing-header: in mind."

    def system(number: int) -> Any:
        header = f"x-anthropic-billing-header: cc_version=2.1; cch={number};"
        return [{"type": "text", "text": header}, {"type": "text", "text": f"{header}\n{kept}"}]

    found = prompt(system=system(1)).messages
    assert found == prompt(system=system(2)).messages
    assert found[0]["content"] == kept
    assert prompt(system="x-anthropic-billing-header: cch=1;").messages[0]["role"] == "user"


def test_system_is_a_text_or_blocks() -> None:
    assert prompt(system="a").messages[0] == {"role": "system", "content": "a"}
    blocks = [
        {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "b"},
    ]
    assert prompt(system=blocks).messages[0]["content"] == "a\n\nb"


def test_blocks_become_turns_of_the_template() -> None:
    four = {"type": "text", "text": "4"}
    found = prompt(
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "weather?"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "a tool", "signature": signature("a tool")},
                    {"type": "redacted_thinking", "data": "x"},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Oslo"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "be quick"},
                    {"type": "tool_result", "tool_use_id": "t1", "content": [four, PICTURE]},
                ],
            },
        ]
    ).messages
    arguments = {"name": "weather", "arguments": {"city": "Oslo"}}
    assert found[1] == {
        "role": "assistant",
        "content": "I look.",
        "reasoning_content": "a tool",
        "tool_calls": [{"id": "t1", "type": "function", "function": arguments}],
    }
    assert found[2] == {"role": "tool", "tool_call_id": "t1", "content": f"4\n{PICTURE_NOTE}"}
    assert found[3] == {"role": "user", "content": "be quick"}


def test_thinking_that_was_left_out_comes_back_in_its_signature() -> None:
    block = {"type": "thinking", "thinking": "", "signature": sealed("wörds")}
    said = {"role": "assistant", "content": [block, {"type": "text", "text": "x"}]}
    assert prompt(messages=[USER, said, USER]).messages[1]["reasoning_content"] == "wörds"


@pytest.mark.parametrize("text", [None, "", "foreign", "potluck1.%", "potluck1./w=="])
def test_signatures_of_others_hold_nothing(text: str | None) -> None:
    assert opened(text) == ""


def test_an_error_of_a_tool_is_told_as_one() -> None:
    call = {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "x", "input": {}}]}

    def result(content: str) -> str:
        block = {"type": "tool_result", "tool_use_id": "t", "content": content, "is_error": True}
        return str(prompt(messages=[USER, call, {"role": "user", "content": [block]}]).messages[2]["content"])

    assert result("no such city") == "Error: no such city"
    assert result("error: none") == "error: none"


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "any", "disable_parallel_tool_use": True}, "required"),
        ({"type": "tool", "name": "weather"}, "weather"),
        ({"type": "none"}, "none"),
    ],
)
def test_choices_of_tools(choice: dict[str, Any], told: str) -> None:
    found = prompt(tools=[WEATHER], tool_choice=choice)
    assert found.tool_choice == told
    assert found.parallel_tool_calls is ("disable_parallel_tool_use" not in choice)
    function = {"name": "weather", "description": "d", "parameters": {"type": "object"}}
    assert found.tools == ({"type": "function", "function": function},)


def test_a_schema_for_the_answer_arrives() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    output = asked(output_config={"format": {"type": "json_schema", "schema": schema}}).request.output
    assert output is not None
    assert json.loads(output.value) == schema


def test_a_count_sees_the_prompt_that_an_answer_would() -> None:
    fields = {"model": "m", "messages": [USER], "system": "s", "tools": [WEATHER]}
    count = prompt_of(validated(fields, COUNT_TOKENS, CountBody))
    assert count == prompt(**fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"messages": [USER, {"role": "assistant", "content": "The"}]}, "cannot go on"),
        ({"messages": [{"role": "user", "content": [PICTURE]}]}, "messages.0.content.0: image"),
        ({"messages": [{"role": "user", "content": [{"type": "nix"}]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "user", "content": [STRAY]}]}, "no such call"),
        ({"messages": [{"role": "boss", "content": "x"}]}, "messages.0"),
        ({"messages": []}, "messages"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": None}, "max_tokens: field required"),
        ({"tools": [{"name": "bash", "type": "bash_20250124"}]}, "tools.0"),
        ({"tools": [{"name": "x"}]}, "tools.0.input_schema"),
        ({"tool_choice": {"type": "tool", "name": "x"}}, "tool_choice"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "between_tools"}}, "thinking"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"temperature": 3}, "temperature"),
    ],
)
def test_a_field_at_fault_is_named(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ApiError, match=words) as caught:
        asked(**fields)
    assert caught.value.status == 400
