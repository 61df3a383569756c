"""OpenAI's own client against a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel

from orchestrator.serving.answer import Refused, Text
from orchestrator.serving.request import Conversation
from tests.orchestrator.api.scripted import (
    CALL,
    HELLO,
    PATCH,
    STARTED,
    THOUGHT,
    TWO_CALLS,
    Scripted,
    finished,
)
from tests.orchestrator.api.serving import client as plain_client
from tests.orchestrator.api.serving import served

if TYPE_CHECKING:
    from openai import OpenAI

# One process imports the clients, which takes seconds.
pytestmark = pytest.mark.xdist_group("clients")

USER: Any = {"role": "user", "content": "hi"}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
PATCH_TOOL: Any = {"type": "custom", "name": "apply_patch", "description": "Edits files."}


class Capital(BaseModel):
    city: str
    people: int


CAPITAL = (STARTED, Text('{"city": "Oslo", '), Text('"people": 700000}'), finished())


@pytest.fixture(scope="module")
def engine() -> Scripted:
    return Scripted()


@pytest.fixture(scope="module")
def client(engine: Scripted) -> Iterator[OpenAI]:
    from openai import OpenAI

    with served(engine) as server, plain_client(server) as http:
        yield OpenAI(base_url=f"{server.url}/v1", api_key="none", http_client=http, max_retries=0)


def test_a_chat_comes_whole(client: OpenAI, engine: Scripted) -> None:
    engine.script = THOUGHT
    answer = client.chat.completions.create(model="m", messages=[USER], temperature=0, seed=3, stop=["END"])
    message = answer.choices[0].message
    assert message.content == "42"
    assert message.model_extra is not None
    assert message.model_extra["reasoning"] == message.model_extra["reasoning_content"] == "let me think"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 19
    assert answer._request_id is not None
    request = engine.requests[-1]
    assert request.sampling.temperature == 0
    assert request.sampling.seed == 3
    assert request.stop == ("END",)


def test_a_chat_is_streamed_with_usage_and_logprobs(client: OpenAI, engine: Scripted) -> None:
    engine.script = HELLO
    stream = client.chat.completions.create(
        model="m",
        messages=[USER],
        stream=True,
        stream_options={"include_usage": True},
        logprobs=True,
        top_logprobs=2,
        n=2,
    )
    texts, tokens, usage = {0: "", 1: ""}, list[str](), None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.logprobs is not None and choice.logprobs.content:
                tokens += [one.token for one in choice.logprobs.content]
    assert texts == {0: "Hello", 1: "Hello"}
    assert sorted(tokens) == ["Hel", "Hel", "lo", "lo"]
    assert usage is not None
    assert usage.completion_tokens == 14


def test_tools_are_called_and_answered(client: OpenAI, engine: Scripted) -> None:
    engine.script = TWO_CALLS
    answer = client.chat.completions.create(
        model="m", messages=[USER], tools=[WEATHER], tool_choice="required"
    )
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls"
    assert message.tool_calls is not None
    results: list[Any] = [
        {"role": "tool", "tool_call_id": call.id, "content": "4"} for call in message.tool_calls
    ]
    engine.script = HELLO
    said: Any = message.model_dump(exclude_none=True)
    client.chat.completions.create(model="m", messages=[USER, said, *results], tools=[WEATHER])
    prompt = engine.requests[-1].prompt
    assert isinstance(prompt, Conversation)
    told = prompt.messages[1]
    assert told["reasoning_content"] == "a tool"
    assert [call["function"]["arguments"]["city"] for call in told["tool_calls"]] == ["Oslo", "Rome"]
    assert [turn["role"] for turn in prompt.messages] == ["user", "assistant", "tool", "tool"]


def test_tools_are_streamed(client: OpenAI, engine: Scripted) -> None:
    engine.script = TWO_CALLS
    with client.chat.completions.stream(model="m", messages=[USER], tools=[WEATHER]) as stream:
        for _ in stream:
            pass
        message = stream.get_final_completion().choices[0].message
    assert message.tool_calls is not None
    assert [json.loads(call.function.arguments)["city"] for call in message.tool_calls] == ["Oslo", "Rome"]


def test_structured_output_is_parsed(client: OpenAI, engine: Scripted) -> None:
    engine.script = CAPITAL
    answer = client.chat.completions.parse(model="m", messages=[USER], response_format=Capital)
    assert answer.choices[0].message.parsed == Capital(city="Oslo", people=700000)
    output = engine.requests[-1].output
    assert output is not None
    assert json.loads(output.value)["properties"].keys() == {"city", "people"}


def test_a_text_is_continued(client: OpenAI, engine: Scripted) -> None:
    engine.script = HELLO
    whole = client.completions.create(model="m", prompt="a", logprobs=2, extra_body={"top_k": 5})
    assert whole.choices[0].text == "Hello"
    assert whole.choices[0].logprobs is not None
    assert whole.choices[0].logprobs.tokens == ["Hel", "lo"]
    assert engine.requests[-1].sampling.top_k == 5
    stream = client.completions.create(model="m", prompt="a", stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "Hello"


def test_models_are_listed(client: OpenAI) -> None:
    import openai

    (model,) = client.models.list().data
    assert client.models.retrieve(model.id) == model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_a_response_comes_whole_and_is_gone_on_from(client: OpenAI, engine: Scripted) -> None:
    import openai

    engine.script = THOUGHT
    first = client.responses.create(model="m", input="1", instructions="be brief", metadata={"a": "b"})
    assert first.output_text == "42"
    assert [item.type for item in first.output] == ["reasoning", "message"]
    assert first.metadata == {"a": "b"}
    assert first.usage is not None
    assert first.usage.output_tokens_details.reasoning_tokens == 3
    assert client.responses.retrieve(first.id).output_text == "42"
    client.responses.create(model="m", input="2", previous_response_id=first.id)
    prompt = engine.requests[-1].prompt
    assert isinstance(prompt, Conversation)
    assert [turn["role"] for turn in prompt.messages] == ["user", "assistant", "user"]
    assert prompt.messages[1]["reasoning_content"] == "let me think"
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)


@pytest.mark.parametrize("script", [HELLO, THOUGHT, CALL, PATCH])
def test_a_response_is_streamed_as_the_client_expects(client: OpenAI, engine: Scripted, script: Any) -> None:
    engine.script = script
    tool: Any = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}
    with client.responses.stream(model="m", input="1", tools=[tool, PATCH_TOOL], store=False) as stream:
        numbers = [event.sequence_number for event in stream]
        final = stream.get_final_response()
    assert numbers == list(range(len(numbers)))
    assert final.status == "completed"
    if script is CALL:
        assert [item.type for item in final.output] == ["reasoning", "function_call"]
    if script is PATCH:
        (item,) = final.output
        assert item.type == "custom_tool_call"
        assert item.input == "*** Begin\n*** End"


def test_a_conversation_goes_on_as_codex_sends_it(client: OpenAI, engine: Scripted) -> None:
    engine.script = CALL
    include: Any = ["reasoning.encrypted_content"]
    tool: Any = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}
    first = client.responses.create(model="m", input="1", tools=[tool], store=False, include=include)
    reasoning, call = first.output
    assert reasoning.type == "reasoning"
    assert call.type == "function_call"
    carried = reasoning.model_dump(exclude={"content", "status"}, exclude_none=True)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "4"}
    items: Any = [USER, carried, call.model_dump(exclude_none=True), result]
    client.responses.create(model="m", input=items, tools=[tool], store=False)
    prompt = engine.requests[-1].prompt
    assert isinstance(prompt, Conversation)
    assert prompt.messages[1]["reasoning_content"] == "a tool"
    assert prompt.messages[2]["content"] == "4"


def test_structured_output_of_a_response_is_parsed(client: OpenAI, engine: Scripted) -> None:
    engine.script = CAPITAL
    answer = client.responses.parse(model="m", input="1", text_format=Capital)
    assert answer.output_parsed == Capital(city="Oslo", people=700000)


@pytest.mark.parametrize(
    ("refusal", "error"),
    [
        (Refused("too_long", "9 tokens of 4"), "BadRequestError"),
        (Refused("busy", "later", 2.0), "RateLimitError"),
        (Refused("unavailable", "boxes"), "InternalServerError"),
    ],
)
def test_refusals_are_the_clients_own_errors(
    client: OpenAI, engine: Scripted, refusal: Refused, error: str
) -> None:
    import openai

    engine.script = (refusal,)
    with pytest.raises(getattr(openai, error)) as caught:
        client.chat.completions.create(model="m", messages=[USER])
    assert refusal.message in caught.value.message
    if refusal.kind == "too_long":
        assert caught.value.code == "context_length_exceeded"


def test_a_stream_that_breaks_off_is_an_error_of_the_client(client: OpenAI, engine: Scripted) -> None:
    import openai

    engine.script = (STARTED, Text("x"), finished("lost"))
    with pytest.raises(openai.APIError, match="send the same request again"):
        list(client.chat.completions.create(model="m", messages=[USER], stream=True))
    events = list(client.responses.create(model="m", input="1", stream=True))
    assert events[-1].type == "response.failed"
    assert events[-1].response.error is not None
