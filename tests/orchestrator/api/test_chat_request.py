"""Chat completions asked for, as the engine is asked."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orchestrator.api.chat_models import ChatBody
from orchestrator.api.chat_request import ChatAsked, chat_asked
from orchestrator.api.effort import REASONING_TOKENS
from orchestrator.api.errors import ApiError
from orchestrator.api.fields import CHAT
from orchestrator.api.tools import Tool
from orchestrator.api.validated import validated
from orchestrator.sampling_params import SamplingParams
from orchestrator.serving.request import Conversation, GenerationRequest, OutputForm

USER = {"role": "user", "content": "hi"}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "d", "parameters": {"type": "object"}},
}
TIME = {"type": "function", "function": {"name": "time"}}
PATCH = {
    "type": "custom",
    "custom": {
        "name": "apply_patch",
        "description": "Edits files.",
        "format": {"type": "grammar", "grammar": {"syntax": "lark", "definition": "start: /x/"}},
    },
}


def asked(**fields: Any) -> ChatAsked:
    document = {"model": "m", "messages": [USER], **fields}
    return chat_asked(validated(document, CHAT, ChatBody), "ann", 99)


def request(**fields: Any) -> GenerationRequest:
    return asked(**fields).requests[0]


def turns(*messages: dict[str, Any]) -> tuple[Any, ...]:
    prompt = request(messages=list(messages)).prompt
    assert isinstance(prompt, Conversation)
    return prompt.messages


def error(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        asked(**fields)
    assert caught.value.status == 400
    return caught.value


def test_a_plain_request_asks_for_what_the_engine_does_by_itself() -> None:
    assert request() == GenerationRequest(
        "ann", Conversation(({"role": "user", "content": "hi"},)), SamplingParams(seed=99)
    )


def test_every_way_of_sampling_arrives() -> None:
    assert request(
        temperature=0,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        seed=-1,
        presence_penalty=1,
        frequency_penalty=-1.5,
        repetition_penalty=1.1,
        logit_bias={"5": -100, "7": 3.5},
    ).sampling == SamplingParams(
        temperature=0.0,
        top_k=40,
        top_p=0.9,
        min_p=0.1,
        seed=2**64 - 1,
        presence_penalty=1.0,
        frequency_penalty=-1.5,
        repetition_penalty=1.1,
        logit_bias=((5, -100.0), (7, 3.5)),
    )


def test_n_answers_are_choices_of_one_prompt_and_seed() -> None:
    found = asked(n=3, seed=5).requests
    assert [one.choice for one in found] == [0, 1, 2]
    assert {one.sampling.seed for one in found} == {5}
    assert len({id(one.prompt) for one in found}) == 1


def test_a_token_that_is_written_in_another_way_is_named() -> None:
    assert request(logit_bias={"0": 1, "2147483647": 2}).sampling.logit_bias == ((0, 1.0), (2147483647, 2.0))
    message = error(logit_bias={"3": 1, "03": 2}).message
    assert "'03' is no token id" in message
    assert "leading zeros" in message


def test_the_limit_has_two_names_and_one_value() -> None:
    assert request(max_tokens=5).max_tokens == 5
    assert request(max_completion_tokens=7).max_tokens == 7
    assert request(max_tokens=7, max_completion_tokens=7).max_tokens == 7
    assert request(max_tokens=None, max_completion_tokens=7).max_tokens == 7
    differing = error(max_tokens=5, max_completion_tokens=7)
    assert differing.param == "max_tokens"
    assert "is 5, but max_completion_tokens" in differing.message
    assert "is 7" in differing.message


def test_logprobs_have_their_tops_only_where_they_are_wanted() -> None:
    assert request().top_logprobs is None
    assert request(logprobs=True).top_logprobs == 0
    assert request(logprobs=True, top_logprobs=4).top_logprobs == 4
    assert error(top_logprobs=4).param == "top_logprobs"


def test_stops_are_one_text_or_several() -> None:
    assert request(stop="a").stop == ("a",)
    assert request(stop=["a", "b"]).stop == ("a", "b")
    assert error(stop=[""]).param == "stop"
    assert error(stop=["x"] * 17).param == "stop"


@pytest.mark.parametrize(("effort", "tokens"), REASONING_TOKENS.items())
def test_effort_bounds_reasoning(effort: str, tokens: int | None) -> None:
    assert request(reasoning_effort=effort).reasoning_tokens == tokens
    assert request(reasoning_effort=effort, reasoning_budget=3).reasoning_tokens == 3


@pytest.mark.parametrize(
    ("form", "output"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, OutputForm("json")),
        ({"type": "regex", "regex": "a+"}, OutputForm("regex", "a+")),
        ({"type": "grammar", "grammar": "start: /a/"}, OutputForm("grammar", "start: /a/")),
    ],
)
def test_forms_of_answers(form: dict[str, str], output: OutputForm | None) -> None:
    assert request(response_format=form).output == output


def test_a_schema_arrives_whole() -> None:
    schema = {"type": "object", "properties": {"é": {"type": "string"}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    output = request(response_format=form).output
    assert output is not None
    assert output.kind == "json_schema"
    assert json.loads(output.value) == schema


def test_messages_become_turns_of_the_template() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    assert turns(
        {"role": "developer", "content": "be brief"},
        {"role": "system", "content": [{"type": "text", "text": "be kind"}]},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "4 degrees"},
    ) == (
        {"role": "system", "content": "be brief\n\nbe kind"},
        {"role": "user", "content": "a\nb"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "hm",
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": {"city": "Oslo"}},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "4 degrees"},
    )


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_is_taken_under_both_names(name: str) -> None:
    said = {"role": "assistant", "content": "x", name: "because"}
    assert turns(USER, said, USER)[1]["reasoning_content"] == "because"


@pytest.mark.parametrize("arguments", ['{"city": ', "[1]", "{" * 5000, "null"])
def test_broken_arguments_of_the_history_are_shown_as_a_text(arguments: str) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    shown = turns(USER, {"role": "assistant", "content": "", "tool_calls": [call]})
    assert shown[1]["tool_calls"][0]["function"]["arguments"] == {"input": arguments}


def test_tools_are_told_as_functions_and_led_back() -> None:
    found = asked(tools=[WEATHER, PATCH])
    prompt = found.requests[0].prompt
    assert isinstance(prompt, Conversation)
    assert prompt.tools[0] == WEATHER
    function = prompt.tools[1]["function"]
    assert "start: /x/" in function["description"]
    assert function["parameters"]["properties"] == {"input": {"type": "string"}}
    form = OutputForm("grammar", "start: /x/")
    assert found.tools.get("apply_patch") == Tool("apply_patch", is_custom=True, form=form)
    assert prompt.inputs == {"apply_patch": form}
    assert found.tools.get("weather") == Tool("weather")


@pytest.mark.parametrize(
    ("choice", "told", "tools"),
    [
        ("auto", "auto", 2),
        ("none", "none", 2),
        ("required", "required", 2),
        ({"type": "function", "function": {"name": "time"}}, "time", 2),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [TIME]}},
            "required",
            1,
        ),
    ],
)
def test_choices_of_tools(choice: Any, told: str, tools: int) -> None:
    prompt = request(tools=[WEATHER, TIME], tool_choice=choice, parallel_tool_calls=False).prompt
    assert isinstance(prompt, Conversation)
    assert prompt.tool_choice == told
    assert len(prompt.tools) == tools
    assert not prompt.parallel_tool_calls


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "tool", "tool_call_id": "c9", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{}]}, "messages.0.role"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages.0.role"),
        ({"stop": 5}, "stop"),
        ({"messages": "hi"}, "messages"),
        ({"n": 17}, "n"),
        ({"n": "1"}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"seed": 2**64}, "seed"),
        ({"stream": "yes"}, "stream"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"3": 1, "03": 2}}, "logit_bias"),
        ({"logit_bias": {"+3": 1}}, "logit_bias"),
        ({"logit_bias": {"3\n": 1}}, "logit_bias"),
        ({"logit_bias": {"٣": 1}}, "logit_bias"),
        ({"logit_bias": {"2147483648": 1}}, "logit_bias"),
        ({"logit_bias": {"": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"top_k": 2**31}, "top_k"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "auto"}}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"parameters": {}}}]}, "tools.0.function.name"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ],
)
def test_a_field_at_fault_is_named(fields: dict[str, Any], param: str) -> None:
    assert error(**fields).param == param


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"messages": []}, "at least 1"),
        ({"messages": [{"role": "king", "content": "x"}]}, "'assistant'"),
        ({"messages": [{"role": "user", "content": 5}]}, "a text or a list"),
        ({"messages": 5, "model": 5}, "a valid list"),
        ({"response_format": {"type": "xml"}}, "'json_schema'"),
    ],
)
def test_what_was_expected_is_told_in_words_of_the_api(fields: dict[str, Any], expected: str) -> None:
    message = error(**fields).message
    assert expected in message
    assert "tag" not in message
    assert "validation" not in message
