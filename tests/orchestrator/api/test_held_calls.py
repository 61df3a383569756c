"""Strict functions and custom tools with a grammar, through each API, on the shipped model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import torch

from orchestrator.one_box import plan_here
from orchestrator.run_memory import Demand
from orchestrator.scheduling.limits import Limits
from orchestrator.serving.engine import EngineSettings, ModelEngine
from orchestrator.session import open_session
from orchestrator.tokenizer import Tokenizer
from placement.pass_costs import costs_of_reading
from tests.orchestrator.api.serving import client, served
from tests.orchestrator.serving.served import MODEL
from workers.formats.open_model import open_model
from workers.memory.reservations import free_memory

PARAMETERS = {
    "type": "object",
    "properties": {
        "unit": {"enum": ["celsius", "kelvin"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 30},
        "places": {"type": "array", "items": {"enum": ["Oslo", "Rome"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["unit", "days", "places"],
    "additionalProperties": False,
}
FUNCTION = {"name": "weather", "parameters": PARAMETERS, "strict": True}
LARK = 'start: "*** Begin" LF line+ "*** End"\nline: /[+-][a-z]{0,6}/ LF\n%import common.LF\n'
IS_PATCH = re.compile(r"\*\*\* Begin\n([+-][a-z]{0,6}\n)+\*\*\* End")
GRAMMAR = {"syntax": "lark", "definition": LARK}
CHAT = {"messages": [{"role": "user", "content": "Hi"}], "reasoning_effort": "none", "max_tokens": 400}
RESPONSE = {"input": "Hi", "reasoning": {"effort": "none"}, "max_output_tokens": 400, "store": False}
MESSAGES = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 400}
SEEDS = range(3)
PARAMS = {
    "/v1/chat/completions": "tools[0].function.parameters",
    "/v1/responses": "tools[0].parameters",
    "/v1/messages": None,
}
SAID = {"/v1/messages": "tools.0.input_schema: "}
ROUTES = {
    "/v1/chat/completions": (CHAT, lambda tool: {"type": "function", "function": tool}),
    "/v1/responses": (RESPONSE, lambda tool: {"type": "function", **tool}),
    "/v1/messages": (MESSAGES, lambda tool: {"name": tool["name"], "input_schema": tool["parameters"]}),
}


@pytest.fixture(scope="module")
def api() -> Iterator[httpx2.Client]:
    model = open_model(MODEL)
    demand = Demand(2048, num_drafts=3)
    plan = plan_here(model, "bfloat16", demand, free_memory([])).plan
    torch.manual_seed(0)
    with open_session(model, plan, num_drafts=3, positions=2048) as session:
        costs = costs_of_reading(session.head.config.shape(""), 16.0)
        settings = EngineSettings("tiny", 7, Limits(2048), costs, 3)
        with ModelEngine(session, Tokenizer.load(MODEL), settings) as engine, served(engine) as server:
            yield client(server)


def post(api: httpx2.Client, route: str, **fields: Any) -> Any:
    answer = api.post(route, json={"temperature": 1.5, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def events(api: httpx2.Client, route: str, **fields: Any) -> list[Any]:
    answer = api.post(route, json={"temperature": 1.5, "stream": True, **fields})
    assert answer.status_code == 200, answer.text
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


def is_weather(arguments: Any) -> bool:
    return (
        arguments.keys() == PARAMETERS["properties"].keys()
        and arguments["unit"] in ("celsius", "kelvin")
        and 1 <= arguments["days"] <= 30
        and 1 <= len(arguments["places"]) <= 3
        and set(arguments["places"]) <= {"Oslo", "Rome"}
    )


def chat_tools(**more: Any) -> dict[str, Any]:
    patch = {"type": "custom", "custom": {"name": "patch", **more}}
    return {**CHAT, "tools": [{"type": "function", "function": FUNCTION}, patch]}


GRAMMAR_OF_CHAT = {"format": {"type": "grammar", "grammar": GRAMMAR}}


def named(kind: str, name: str) -> dict[str, Any]:
    return {"type": kind, kind: {"name": name}}


def test_calls_in_chat_completions_fit(api: httpx2.Client) -> None:
    for seed in SEEDS:
        asked = {**chat_tools(**GRAMMAR_OF_CHAT), "seed": seed, "parallel_tool_calls": False}
        answer = post(api, "/v1/chat/completions", tool_choice=named("function", "weather"), **asked)
        (call,) = answer["choices"][0]["message"]["tool_calls"]
        assert is_weather(json.loads(call["function"]["arguments"]))
        answer = post(api, "/v1/chat/completions", tool_choice=named("custom", "patch"), **asked)
        (call,) = answer["choices"][0]["message"]["tool_calls"]
        assert IS_PATCH.fullmatch(call["custom"]["input"])
        assert answer["choices"][0]["finish_reason"] == "tool_calls"


def test_a_stream_of_them_says_the_same(api: httpx2.Client) -> None:
    asked = {**chat_tools(**GRAMMAR_OF_CHAT), "seed": 1, "parallel_tool_calls": False}
    asked["tool_choice"] = named("custom", "patch")
    whole = post(api, "/v1/chat/completions", **asked)["choices"][0]["message"]["tool_calls"][0]
    pieces = [
        call["custom"].get("input", "")
        for chunk in events(api, "/v1/chat/completions", **asked)
        for choice in chunk["choices"]
        for call in choice["delta"].get("tool_calls", ())
    ]
    assert "".join(pieces) == whole["custom"]["input"]


def test_without_a_grammar_the_same_model_writes_something_else(api: httpx2.Client) -> None:
    for seed in SEEDS[:2]:
        asked = {**chat_tools(), "seed": seed, "tool_choice": named("custom", "patch")}
        answer = post(api, "/v1/chat/completions", **asked)
        assert not IS_PATCH.fullmatch(answer["choices"][0]["message"]["tool_calls"][0]["custom"]["input"])


def test_calls_in_responses_fit_streamed_and_whole(api: httpx2.Client) -> None:
    patch = {"type": "custom", "name": "patch", "format": {"type": "grammar", **GRAMMAR}}
    asked = {**RESPONSE, "tools": [{"type": "function", **FUNCTION}, patch], "parallel_tool_calls": False}
    for seed in SEEDS:
        choice = {"type": "function", "name": "weather"}
        (item,) = post(api, "/v1/responses", seed=seed, tool_choice=choice, **asked)["output"]
        assert is_weather(json.loads(item["arguments"]))
        choice = {"type": "custom", "name": "patch"}
        (item,) = post(api, "/v1/responses", seed=seed, tool_choice=choice, **asked)["output"]
        assert IS_PATCH.fullmatch(item["input"])
    streamed = events(api, "/v1/responses", seed=seed, tool_choice=choice, **asked)
    pieces = [
        event["delta"] for event in streamed if event["type"] == "response.custom_tool_call_input.delta"
    ]
    assert "".join(pieces) == item["input"]


def test_a_tool_of_messages_that_is_strict_is_held_too(api: httpx2.Client) -> None:
    tool = {"name": "weather", "input_schema": PARAMETERS, "strict": True}
    choice = {"type": "tool", "name": "weather", "disable_parallel_tool_use": True}
    answer = post(api, "/v1/messages", **MESSAGES, tools=[tool], tool_choice=choice, seed=4)
    (block,) = answer["content"]
    assert is_weather(block["input"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ROUTES)
def test_a_schema_that_cannot_be_held_is_refused_by_its_tools_name(
    api: httpx2.Client, route: str, stream: bool
) -> None:
    fields, tool_of = ROUTES[route]
    parameters = {"type": "object", "properties": {"size": {"type": "integer", "multipleOf": "x"}}}
    tool = tool_of({"name": "weather", "parameters": parameters, "strict": True})
    if route == "/v1/messages":
        tool["strict"] = True
    answer = api.post(route, json={**fields, "tools": [tool], "stream": stream})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert "'weather'" in error["message"]
    assert "'size'" in error["message"]
    assert error.get("param") == PARAMS[route]
    assert error["message"].startswith(SAID.get(route, "the tool 'weather'"))


@pytest.mark.parametrize("syntax", ["lark", "regex"])
def test_a_grammar_that_is_none_is_refused_by_its_tools_name(api: httpx2.Client, syntax: str) -> None:
    grammar = {"syntax": syntax, "definition": "start: (nobody"}
    asked = chat_tools(format={"type": "grammar", "grammar": grammar})
    patch = {"type": "custom", "name": "patch", "format": {"type": "grammar", **grammar}}
    space = {"type": "namespace", "name": "files", "tools": [patch]}
    for route, body, param, name in (
        ("/v1/chat/completions", asked, "tools[1].custom.format.grammar.definition", "patch"),
        ("/v1/responses", {**RESPONSE, "tools": [patch]}, "tools[0].format.definition", "patch"),
        (
            "/v1/responses",
            {**RESPONSE, "tools": [{"type": "web_search"}, space]},
            "tools[1].tools[0].format.definition",
            "files__patch",
        ),
    ):
        answer = api.post(route, json=body)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert f"'{name}'" in error["message"]
        assert "cannot be followed" in error["message"]
        assert error["param"] == param


SCHEMA = {"type": "object", "properties": {"size": {"type": "integer", "multipleOf": "x"}}}
FORM = {"type": "json_schema", "name": "n", "schema": SCHEMA}


@pytest.mark.parametrize(
    ("route", "fields", "param"),
    [
        (
            "chat/completions",
            {**CHAT, "response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
            "response_format",
        ),
        ("chat/completions", {**CHAT, "response_format": {"type": "regex", "regex": "("}}, "response_format"),
        (
            "chat/completions",
            {**CHAT, "response_format": {"type": "regex", "regex": "a"}, "ignore_eos": True},
            "ignore_eos",
        ),
        ("chat/completions", {**CHAT, "logit_bias": {"999999": 1}}, "logit_bias"),
        ("chat/completions", {"messages": [{"role": "user", "content": "word " * 3000}]}, "messages"),
        ("responses", {**RESPONSE, "text": {"format": FORM}}, "text.format.schema"),
        ("responses", {**RESPONSE, "input": "word " * 3000}, "input"),
        ("completions", {"prompt": [999_999]}, "prompt"),
    ],
)
def test_a_field_that_only_the_model_finds_at_fault_is_named(
    api: httpx2.Client, route: str, fields: dict[str, Any], param: str
) -> None:
    answer = api.post(f"/v1/{route}", json=fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_anthropics_message_names_the_form_that_cannot_be_followed(api: httpx2.Client) -> None:
    form = {"format": {"type": "json_schema", "schema": SCHEMA}}
    answer = api.post("/v1/messages", json={**MESSAGES, "output_config": form})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("output_config.format.schema: ")


def test_a_format_without_its_grammar_is_refused(api: httpx2.Client) -> None:
    answer = api.post("/v1/chat/completions", json=chat_tools(format={"type": "grammar"}))
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "tools"
