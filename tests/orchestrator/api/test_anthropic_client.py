"""Anthropic's own client against a real server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from orchestrator.serving.answer import Prefilled, Refused, Text
from orchestrator.serving.request import Conversation
from tests.orchestrator.api.scripted import HELLO, STARTED, THOUGHT, TWO_CALLS, Scripted, finished
from tests.orchestrator.api.serving import client as plain_client
from tests.orchestrator.api.serving import served

if TYPE_CHECKING:
    from anthropic import Anthropic

# One process imports the clients, which takes seconds.
pytestmark = pytest.mark.xdist_group("clients")

USER: Any = {"role": "user", "content": "hi"}
WEATHER: Any = {"name": "weather", "input_schema": {"type": "object"}}
THINKING: Any = {"type": "enabled", "budget_tokens": 1024}


@pytest.fixture(scope="module")
def engine() -> Scripted:
    return Scripted()


@pytest.fixture(scope="module")
def client(engine: Scripted) -> Iterator[Anthropic]:
    from anthropic import Anthropic

    with served(engine) as server, plain_client(server) as http:
        yield Anthropic(base_url=server.url, api_key="none", http_client=http, max_retries=0)


def test_a_message_comes_whole(client: Anthropic, engine: Scripted) -> None:
    engine.script = HELLO
    message = client.messages.create(model="m", max_tokens=9, messages=[USER], system="be brief")
    (block,) = message.content
    assert block.type == "text"
    assert block.text == "Hello"
    assert message.stop_reason == "end_turn"
    assert message.usage.input_tokens == 7
    assert message.usage.cache_read_input_tokens == 5
    assert engine.requests[-1].max_tokens == 9
    assert message._request_id is not None


def test_thinking_is_streamed_and_sent_back(client: Anthropic, engine: Scripted) -> None:
    engine.script = (STARTED, Prefilled(6), *THOUGHT[1:])
    with client.messages.stream(model="m", max_tokens=2000, messages=[USER], thinking=THINKING) as stream:
        assert "".join(stream.text_stream) == "42"
        message = stream.get_final_message()
    thinking = message.content[0]
    assert thinking.type == "thinking"
    assert thinking.thinking == "let me think"
    assert thinking.signature
    assert engine.requests[-1].reasoning_tokens == 1024
    said: Any = {"role": "assistant", "content": message.content}
    client.messages.create(model="m", max_tokens=9, messages=[USER, said, USER])
    prompt = engine.requests[-1].prompt
    assert isinstance(prompt, Conversation)
    assert prompt.messages[1] == {"role": "assistant", "content": "42", "reasoning_content": "let me think"}


@pytest.mark.parametrize("is_streamed", [False, True])
def test_tools_are_called_and_answered(client: Anthropic, engine: Scripted, is_streamed: bool) -> None:
    engine.script = TWO_CALLS
    fields: Any = {"model": "m", "max_tokens": 9, "messages": [USER], "tools": [WEATHER]}
    if is_streamed:
        with client.messages.stream(**fields) as stream:
            message = stream.get_final_message()
    else:
        message = client.messages.create(**fields)
    assert message.stop_reason == "tool_use"
    calls = [block for block in message.content if block.type == "tool_use"]
    assert [call.input for call in calls] == [{"city": "Oslo"}, {"city": "Rome"}]
    results: Any = [{"type": "tool_result", "tool_use_id": call.id, "content": "4"} for call in calls]
    said: Any = {"role": "assistant", "content": message.content}
    client.messages.create(**{**fields, "messages": [USER, said, {"role": "user", "content": results}]})
    prompt = engine.requests[-1].prompt
    assert isinstance(prompt, Conversation)
    assert [turn["role"] for turn in prompt.messages] == ["user", "assistant", "tool", "tool"]


def test_a_stop_sequence_is_named(client: Anthropic, engine: Scripted) -> None:
    engine.script = (STARTED, Text("x"), finished("stop_text", "END"))
    message = client.messages.create(model="m", max_tokens=9, messages=[USER], stop_sequences=["END"])
    assert message.stop_reason == "stop_sequence"
    assert message.stop_sequence == "END"


def test_tokens_are_counted(client: Anthropic, engine: Scripted) -> None:
    engine.script = HELLO
    count = client.messages.count_tokens(model="m", messages=[USER], tools=[WEATHER], thinking=THINKING)
    assert count.input_tokens == 12
    assert isinstance(engine.counted[-1], Conversation)


def test_models_are_listed(client: Anthropic) -> None:
    (model,) = client.models.list().data
    assert client.models.retrieve(model.id).id == model.id


@pytest.mark.parametrize(
    ("refusal", "error"),
    [
        (Refused("too_long", "prompt is too long: 9 tokens of 4"), "BadRequestError"),
        (Refused("busy", "later", 2.0), "RateLimitError"),
        (Refused("unavailable", "boxes"), "InternalServerError"),
    ],
)
def test_refusals_are_the_clients_own_errors(
    client: Anthropic, engine: Scripted, refusal: Refused, error: str
) -> None:
    import anthropic

    engine.script = (refusal,)
    with pytest.raises(getattr(anthropic, error), match=refusal.message):
        client.messages.create(model="m", max_tokens=9, messages=[USER])


def test_a_stream_that_breaks_off_is_an_error_of_the_client(client: Anthropic, engine: Scripted) -> None:
    import anthropic

    engine.script = (STARTED, Text("x"), finished("lost"))
    with (
        pytest.raises(anthropic.APIStatusError, match="send the same request again"),
        client.messages.stream(model="m", max_tokens=9, messages=[USER]) as stream,
    ):
        stream.get_final_message()
