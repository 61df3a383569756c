"""Runs where openai, anthropic and litellm are installed; prints a JSON object for each thing tried.

Reads CLIENTS_URL, CLIENTS_KEY and CLIENTS_MODEL. A model that answers as it likes may fail what needs a call.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from typing import Any

URL, KEY, MODEL = (os.environ[f"CLIENTS_{name}"] for name in ("URL", "KEY", "MODEL"))
USER: Any = {"role": "user", "content": "How warm is it in Oslo? Use the tool if there is one."}
SCHEMA: Any = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "people": {"type": "integer"}},
    "required": ["city", "people"],
    "additionalProperties": False,
}
CITY: Any = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL: Any = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": CITY}}
FORM: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA, "strict": True}}


def trial(client: str, what: str, work: Callable[[], object]) -> None:
    """`work` gives something that is true where it went well."""
    try:
        found = work()
        outcome = {"ok": bool(found), "detail": "" if found else "empty"}
    except Exception as error:
        outcome = {"ok": False, "detail": f"{type(error).__name__}: {error}"[:300]}
    print(json.dumps({"client": client, "what": what, **outcome}), flush=True)


def with_openai() -> None:
    from openai import OpenAI

    client = OpenAI(base_url=f"{URL}/v1", api_key=KEY)
    chat = client.chat.completions
    name = "openai"

    def streamed() -> object:
        chunks = list(
            chat.create(model=MODEL, messages=[USER], stream=True, stream_options={"include_usage": True})
        )
        return chunks[-1].usage and any(chunk.choices and chunk.choices[0].delta.content for chunk in chunks)

    def tools() -> object:
        message = chat.create(model=MODEL, messages=[USER], tools=[TOOL]).choices[0].message
        assert message.tool_calls
        said: Any = message.model_dump(exclude_none=True)
        result: Any = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "4 degrees"}
        again = chat.create(model=MODEL, messages=[USER, said, result], tools=[TOOL])
        return again.choices[0].message.content

    def structured() -> object:
        answer = chat.create(model=MODEL, messages=[USER], response_format=FORM)
        return json.loads(answer.choices[0].message.content or "").keys() == SCHEMA["properties"].keys()

    def responses() -> object:
        first = client.responses.create(model=MODEL, input="hi")
        second = client.responses.create(model=MODEL, input="more", previous_response_id=first.id)
        return first.output_text and second.output_text

    def responses_streamed() -> object:
        with client.responses.stream(model=MODEL, input="hi") as stream:
            list(stream)
            return stream.get_final_response().output_text

    trial(name, "chat", lambda: chat.create(model=MODEL, messages=[USER]).choices[0].message.content)
    trial(name, "chat streamed, usage", streamed)
    trial(name, "chat, tool and its result", tools)
    trial(name, "chat, JSON schema", structured)
    trial(name, "responses, previous_response_id", responses)
    trial(name, "responses streamed", responses_streamed)


def with_anthropic() -> None:
    from anthropic import Anthropic

    client = Anthropic(base_url=URL, api_key=KEY)
    name = "anthropic"
    fields: Any = {"model": MODEL, "max_tokens": 2048, "messages": [USER]}
    tool: Any = {"name": "weather", "description": "d", "input_schema": CITY}

    def streamed() -> object:
        thinking: Any = {"type": "enabled", "budget_tokens": 1024}
        with client.messages.stream(**fields, thinking=thinking) as stream:
            return [block.type for block in stream.get_final_message().content] == ["thinking", "text"]

    def tools() -> object:
        message = client.messages.create(**fields, tools=[tool])
        calls = [block for block in message.content if block.type == "tool_use"]
        results = [{"type": "tool_result", "tool_use_id": call.id, "content": "4 degrees"} for call in calls]
        turns: Any = [
            USER,
            {"role": "assistant", "content": message.content},
            {"role": "user", "content": results},
        ]
        again = client.messages.create(**{**fields, "messages": turns}, tools=[tool])
        return calls and again.content

    trial(name, "messages", lambda: client.messages.create(**fields).content)
    trial(name, "messages streamed, thinking", streamed)
    trial(name, "messages, tool and its result", tools)
    trial(name, "count_tokens", lambda: client.messages.count_tokens(model=MODEL, messages=[USER]))


def with_litellm() -> None:
    import litellm  # type: ignore[import-not-found]

    name = "litellm"
    openai: Any = {"model": f"openai/{MODEL}", "api_base": f"{URL}/v1", "api_key": KEY, "messages": [USER]}
    anthropic: Any = {"model": f"anthropic/{MODEL}", "api_base": URL, "api_key": KEY, "messages": [USER]}

    def text(fields: Any) -> object:
        return litellm.completion(**fields, max_tokens=2048).choices[0].message.content

    def streamed(fields: Any) -> object:
        chunks = litellm.completion(**fields, max_tokens=2048, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    def tools(fields: Any) -> object:
        message = litellm.completion(**fields, max_tokens=2048, tools=[TOOL]).choices[0].message
        result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "4 degrees"}
        turns = [USER, message.model_dump(exclude_none=True), result]
        again = litellm.completion(**{**fields, "messages": turns}, max_tokens=2048, tools=[TOOL])
        return again.choices[0].message.content

    def reasoning() -> object:
        answer = litellm.completion(
            **openai, reasoning_effort="low", allowed_openai_params=["reasoning_effort"]
        )
        return answer.choices[0].message.reasoning_content

    def structured() -> object:
        content = litellm.completion(**openai, response_format=FORM).choices[0].message.content
        return json.loads(content).keys() == SCHEMA["properties"].keys()

    def responses() -> object:
        fields = {key: value for key, value in openai.items() if key != "messages"}
        return litellm.responses(**fields, input="hi").output_text

    for way, fields in (("openai/", openai), ("anthropic/", anthropic)):
        trial(name, f"{way} completion", partial(text, fields))
        trial(name, f"{way} completion streamed", partial(streamed, fields))
        trial(name, f"{way} tool and its result", partial(tools, fields))
    trial(name, "openai/ reasoning", reasoning)
    trial(name, "openai/ JSON schema", structured)
    trial(name, "openai/ responses", responses)


if __name__ == "__main__":
    with_openai()
    with_anthropic()
    with_litellm()
