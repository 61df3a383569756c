"""A conversation made ready for its chat template: white space, lists of texts, old reasoning, old calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from orchestrator.answers.argument_text import read_arguments
from orchestrator.answers.tags import END_OF_THINK, THINK
from orchestrator.answers.tool_schema import ToolSchema, tool_schemas
from orchestrator.serving.request import Conversation
from placement.errors import InputError
from placement.files.quote import quote

Json = Any
Message = Mapping[str, Json]

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_RESPONSE = "<tool_response>"
_END_OF_RESPONSE = "</tool_response>"


def clean(conversation: Conversation) -> Conversation:
    """The conversation as the template is to see it.

    What becomes of a message depends on it alone, but for two things: whether reasoning is kept, and the
    order of results that follow each other. So the beginning of a longer conversation gives the same tokens
    again, which lets their keys and values be used again.

    Raises:
        InputError: a message has no role that is known, or content that is no text; names it.
    """
    tools = tool_schemas(conversation.tools)
    messages = [_cleaned(message, number, tools) for number, message in enumerate(conversation.messages)]
    last_user = max((number for number, one in enumerate(messages) if _is_real_user(one)), default=0)
    for message in messages[:last_user]:
        message.pop("reasoning_content", None)
    return replace(conversation, messages=tuple(_in_order_of_calls(messages)))


def _cleaned(message: Message, number: int, tools: Mapping[str, ToolSchema]) -> dict[str, Json]:
    where = f"messages[{number}]"
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise InputError(f"{where}.role is {quote(role)}; expected one of {', '.join(_ROLES)}")
    found: dict[str, Json] = {"role": _ROLES[role], "content": _text(message.get("content"), where).strip()}
    for key in ("name", "tool_call_id"):
        if isinstance(message.get(key), str):
            found[key] = message[key]
    if role == "assistant":
        found["content"], reasoning = _answered(found["content"], message)
        if reasoning:
            found["reasoning_content"] = reasoning
        if calls := message.get("tool_calls"):
            found["tool_calls"] = _calls(calls, where, tools)
    return found


def _text(content: Json, where: str) -> str:
    """One text of a content; parts follow each other without anything between, as the template has them."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise InputError(f"{where}.content is {quote(content)}; expected a text or a list of text parts")
    texts = []
    for number, part in enumerate(content):
        text = part.get("text") if isinstance(part, Mapping) else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else part
            raise InputError(
                f"{where}.content[{number}] is of type {quote(kind)}; expected text, the only kind that this "
                "model reads"
            )
        texts.append(text)
    return "".join(texts)


def _answered(content: str, message: Message) -> tuple[str, str]:
    """An old answer without tags of reasoning, and its reasoning.

    Some clients send both in one text, with <think> in front. A </think> elsewhere is a stray one.
    """
    given = message.get("reasoning_content", message.get("reasoning"))
    reasoning = given.strip() if isinstance(given, str) else ""
    if content.startswith(THINK) and END_OF_THINK in content:
        inline, _, content = content.removeprefix(THINK).partition(END_OF_THINK)
        reasoning = reasoning or inline.strip()
    return content.replace(END_OF_THINK, "").strip(), reasoning.replace(END_OF_THINK, "").strip()


def _calls(calls: Json, where: str, tools: Mapping[str, ToolSchema]) -> list[dict[str, Json]]:
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise InputError(f"{where}.tool_calls is {quote(calls)}; expected a list of calls")
    found = []
    for number, call in enumerate(calls):
        function = call.get("function", call) if isinstance(call, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(call, Mapping) or not isinstance(function, Mapping) or not isinstance(name, str):
            raise InputError(
                f"{where}.tool_calls[{number}] is {quote(call)}; expected an object with function.name"
            )
        arguments = read_arguments(function.get("arguments"), tools.get(name))
        one: dict[str, Json] = {"type": "function", "function": {"name": name, "arguments": arguments}}
        if isinstance(call.get("id"), str):
            one["id"] = call["id"]
        found.append(one)
    return found


def _is_real_user(message: Message) -> bool:
    """Whether a message asks something: some clients send a tool's results as the user's."""
    content = message["content"]
    is_result = content.startswith(_RESPONSE) and content.endswith(_END_OF_RESPONSE)
    return message["role"] == "user" and not is_result


def _in_order_of_calls(messages: Sequence[dict[str, Json]]) -> list[dict[str, Json]]:
    """Results in the order of the calls that they answer. The template shows no ids: the order is all."""
    ordered: list[dict[str, Json]] = []
    results: list[dict[str, Json]] = []
    places: dict[str, int] = {}

    def place(result: dict[str, Json]) -> int:
        return places.get(result.get("tool_call_id", ""), len(places))

    for message in messages:
        if message["role"] == "tool":
            results.append(message)
            continue
        ordered += sorted(results, key=place)
        ordered.append(message)
        results = []
        calls = message.get("tool_calls", [])
        places = {call["id"]: number for number, call in enumerate(calls) if "id" in call}
    return ordered + sorted(results, key=place)
