"""A response asked for, as a request of the engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.api import responses_models as models
from orchestrator.api.carried import opened
from orchestrator.api.effort import reasoning_tokens
from orchestrator.api.errors import ApiError, invalid
from orchestrator.api.sampling import sampling
from orchestrator.api.tools import (
    Tool,
    Tools,
    arguments_of,
    custom,
    custom_arguments,
    custom_form,
    function,
    gathered,
)
from orchestrator.api.turns import PICTURE_NOTE, Turn, answered, call, conversation, result, said, text_only
from orchestrator.api.validated import stops
from orchestrator.serving.request import Conversation, GenerationRequest, OutputForm

Json = dict[str, Any]

ENCRYPTED = "reasoning.encrypted_content"
LOGPROBS = "message.output_text.logprobs"


@dataclass(frozen=True, slots=True)
class ResponseAsked:
    """`items`: of the conversation, those of earlier responses first."""

    request: GenerationRequest
    tools: Tools
    items: tuple[Json, ...]
    with_encrypted: bool
    with_logprobs: bool


def response_asked(
    body: models.ResponseBody,
    history: Sequence[Json],
    item_of: Callable[[str], Json | None],
    client: str,
    seed: int,
) -> ResponseAsked:
    """What is asked of the engine.

    Args:
        history: the items of the response that this one goes on from.
        item_of: an item that was stored, by its id.
        seed: for a request that names none.

    Raises:
        ApiError: a field is at fault.
    """
    items = (*history, *_items(body.input, item_of))
    turns = [said("system", body.instructions)] if body.instructions else []
    turns += _turns(models.ITEMS.validate_python(items))
    tools = _tools(body)
    form = None if body.text is None else body.text.format
    effort = None if body.reasoning is None else body.reasoning.effort
    with_logprobs = body.top_logprobs is not None or LOGPROBS in body.include
    request = GenerationRequest(
        client=client,
        prompt=Conversation(
            conversation(turns, "input"),
            tools.functions,
            tools.choice,
            body.parallel_tool_calls,
            tools.inputs,
        ),
        sampling=sampling(body, seed),
        max_tokens=body.max_output_tokens,
        stop=stops(body.stop, "stop"),
        ignore_eos=body.ignore_eos,
        top_logprobs=(body.top_logprobs or 0) if with_logprobs else None,
        output=_output_form(form),
        reasoning_tokens=reasoning_tokens(effort, body.reasoning_budget),
    )
    return ResponseAsked(request, tools, items, ENCRYPTED in body.include, with_logprobs)


def echo(body: models.ResponseBody) -> Json:
    """What a response repeats of its request."""
    given = body.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata,
        "parallel_tool_calls": body.parallel_tool_calls,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": None if body.reasoning is None else body.reasoning.effort, "summary": None},
        "store": body.store,
        "temperature": body.temperature,
        "text": {"format": given.get("text", {}).get("format", {"type": "text"})},
        "tool_choice": given.get("tool_choice", "auto"),
        "tools": [{"parameters": None, "strict": None, **tool} for tool in given["tools"]],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": body.top_p,
        "truncation": "disabled",
    }


def _items(given: str | list[Any], item_of: Callable[[str], Json | None]) -> list[Json]:
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    items = []
    for number, item in enumerate(given):
        if isinstance(item, models.ReferenceItem):
            stored = item_of(item.id)
            if stored is None:
                raise ApiError(
                    404, f"input.{number}: the item {item.id[:100]!r} is not stored", param=f"input.{number}"
                )
            items.append(stored)
        else:
            items.append(item.model_dump(mode="json", exclude_none=True))
    return items


class _Assistant:
    """Items of the model, one after another, are one turn."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.reasoning: list[str] = []
        self.calls: list[dict[str, Any]] = []

    def turns(self) -> list[Turn]:
        if not (self.texts or self.reasoning or self.calls):
            return []
        return [answered("\n\n".join(self.texts), "\n".join(self.reasoning), self.calls)]


def _turns(items: Sequence[Any]) -> list[Turn]:
    turns: list[Turn] = []
    own = _Assistant()
    for number, item in enumerate(items):
        if isinstance(item, models.ReasoningItem):
            own.reasoning.append(_reasoning(item))
        elif isinstance(item, models.CallItem):
            name = _model_name(item.name, item.namespace)
            own.calls.append(call(item.call_id, name, arguments_of(item.arguments)))
        elif isinstance(item, models.CustomCallItem):
            name = _model_name(item.name, item.namespace)
            own.calls.append(call(item.call_id, name, custom_arguments(item.input)))
        elif isinstance(item, models.MessageItem) and item.role == "assistant":
            own.texts.append(_text(item.content, f"input.{number}.content"))
        else:
            turns += own.turns()
            own = _Assistant()
            turns.append(_turn(item, f"input.{number}"))
    return turns + own.turns()


def _turn(item: Any, field: str) -> Turn:
    if isinstance(item, models.OutputItem):
        return result(item.call_id, _text(item.output, f"{field}.output", is_picture_noted=True))
    role = "system" if item.role == "developer" else item.role
    return said(role, _text(item.content, f"{field}.content"))


def _text(content: str | Sequence[Any], field: str, *, is_picture_noted: bool = False) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for number, part in enumerate(content):
        if isinstance(part, models.TextPart):
            texts.append(part.text)
        elif isinstance(part, models.RefusalPart):
            texts.append(part.refusal)
        elif is_picture_noted:
            texts.append(PICTURE_NOTE)
        else:
            raise text_only(part.type, f"{field}.{number}")
    return "\n".join(texts)


def _reasoning(item: models.ReasoningItem) -> str:
    if item.content:
        return "".join(part.text for part in item.content)
    return opened(item.encrypted_content) or "\n".join(part.text for part in item.summary)


def _model_name(name: str, namespace: str | None) -> str:
    """The model knows no namespaces."""
    return f"{namespace}__{name}" if namespace else name


def _tools(body: models.ResponseBody) -> Tools:
    named: list[tuple[Tool, Mapping[str, Any]]] = []
    for number, tool in enumerate(body.tools):
        where = f"tools.{number}"
        if isinstance(tool, models.NamespaceTool):
            inner = enumerate(tool.tools)
            named += [_tool(one, tool.name, f"{where}.tools.{place}") for place, one in inner]
        elif not isinstance(tool, models.SearchTool):
            named.append(_tool(tool, None, where))
    choice, allowed = _choice(body.tool_choice)
    return gathered(named, choice, allowed, "tool_choice")


def _tool(
    tool: models.FunctionTool | models.CustomTool, namespace: str | None, where: str
) -> tuple[Tool, Mapping[str, Any]]:
    name = _model_name(tool.name, namespace)
    if isinstance(tool, models.FunctionTool):
        told = function(name, tool.description, tool.parameters, strict=bool(tool.strict))
        return Tool(tool.name, namespace=namespace, where=f"{where}.parameters"), told
    own = tool.format
    form = None if own is None else custom_form(tool.name, own.type, own.syntax, own.definition)
    told = custom(name, tool.description, form)
    where += ".format.definition"
    return Tool(tool.name, is_custom=True, namespace=namespace, form=form, where=where), told


def _choice(choice: Any) -> tuple[str, frozenset[str] | None]:
    if choice is None or isinstance(choice, str):
        return choice or "auto", None
    if isinstance(choice, models.AllowedChoice):
        return choice.mode, frozenset(_model_name(one.name, one.namespace) for one in choice.tools)
    return _model_name(choice.name, choice.namespace), None


def _output_form(form: models.PlainFormat | models.SchemaFormat | None) -> OutputForm | None:
    if isinstance(form, models.SchemaFormat):
        return OutputForm("json_schema", json.dumps(form.schema_, ensure_ascii=False))
    return OutputForm("json") if form is not None and form.type == "json_object" else None


def not_stored(response_id: str, field: str | None = None) -> ApiError:
    """A response that was never stored, or is no longer."""
    error = invalid(field or "response_id", f"the response {response_id[:100]!r} is not stored")
    return ApiError(404, error.message, param=field, code="previous_response_not_found" if field else None)
