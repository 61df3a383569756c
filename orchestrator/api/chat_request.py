"""A chat completion asked for, as requests of the engine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.api import chat_models as models
from orchestrator.api.effort import reasoning_tokens
from orchestrator.api.errors import invalid
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
from orchestrator.api.turns import Turn, answered, call, conversation, result, said, text_only
from orchestrator.api.validated import stops
from orchestrator.serving.request import Conversation, GenerationRequest, OutputForm


@dataclass(frozen=True, slots=True)
class ChatAsked:
    """`requests`: one for each of the `n` answers; `usage_at_end`: a stream ends with its tokens."""

    requests: tuple[GenerationRequest, ...]
    tools: Tools
    usage_at_end: bool


def chat_asked(body: models.ChatBody, client: str, seed: int) -> ChatAsked:
    """What is asked of the engine.

    Args:
        seed: for a request that names none.

    Raises:
        ApiError: a field is at fault.
    """
    tools = _tools(body)
    turns = [turn for number, one in enumerate(body.messages) for turn in _turns(one, f"messages.{number}")]
    if body.top_logprobs is not None and not body.logprobs:
        raise invalid("top_logprobs", "needs logprobs to be true")
    prompt = Conversation(
        conversation(turns, "messages"),
        tools.functions,
        tools.choice,
        body.parallel_tool_calls,
        tools.inputs,
    )
    requests = tuple(
        GenerationRequest(
            client=client,
            prompt=prompt,
            sampling=sampling(body, seed),
            choice=choice,
            max_tokens=_limit(body),
            stop=stops(body.stop, "stop"),
            ignore_eos=body.ignore_eos,
            top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            output=output_form(body.response_format),
            reasoning_tokens=reasoning_tokens(body.reasoning_effort, body.reasoning_budget),
        )
        for choice in range(body.n)
    )
    options = body.stream_options
    return ChatAsked(requests, tools, options is not None and bool(options.include_usage))


def output_form(form: models.Format | None) -> OutputForm | None:
    """The form of an answer; None where any text will do."""
    if isinstance(form, models.SchemaFormat):
        return OutputForm("json_schema", json.dumps(form.json_schema.schema_, ensure_ascii=False))
    if isinstance(form, models.RegexFormat):
        return OutputForm("regex", form.regex)
    if isinstance(form, models.GrammarFormat):
        return OutputForm("grammar", form.grammar)
    return OutputForm("json") if form is not None and form.type == "json_object" else None


def _limit(body: models.ChatBody) -> int | None:
    older, newer = body.max_tokens, body.max_completion_tokens
    if older is not None and newer is not None and older != newer:
        words = f"is {older:,}, but max_completion_tokens, its newer name, is {newer:,}: leave one out"
        raise invalid("max_tokens", words)
    return older if newer is None else newer


def _turns(message: Any, field: str) -> list[Turn]:
    if isinstance(message, models.ToolMessage):
        return [result(message.tool_call_id, _text(message.content, f"{field}.content"))]
    if isinstance(message, models.AssistantMessage):
        text = _text(message.content or "", f"{field}.content") or message.refusal or ""
        return [
            answered(
                text,
                message.reasoning_content or message.reasoning or "",
                [_call(made) for made in message.tool_calls or ()],
            )
        ]
    role = "system" if message.role == "developer" else message.role
    return [said(role, _text(message.content, f"{field}.content"))]


def _text(content: models.Content, field: str) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for number, part in enumerate(content):
        if isinstance(part, models.PicturePart):
            raise text_only(part.type, f"{field}.{number}")
        texts.append(part.text if isinstance(part, models.TextPart) else part.refusal)
    return "\n".join(texts)


def _call(made: models.FunctionCall | models.CustomCall) -> dict[str, Any]:
    if isinstance(made, models.CustomCall):
        return call(made.id, made.custom.name, custom_arguments(made.custom.input))
    return call(made.id, made.function.name, arguments_of(made.function.arguments))


def _tools(body: models.ChatBody) -> Tools:
    choice, allowed = _choice(body.tool_choice)
    tools = [_tool(tool, f"tools.{number}") for number, tool in enumerate(body.tools)]
    return gathered(tools, choice, allowed, "tool_choice")


def _tool(tool: models.FunctionTool | models.CustomTool, where: str) -> tuple[Tool, Mapping[str, Any]]:
    if isinstance(tool, models.FunctionTool):
        told = tool.function
        shown = function(told.name, told.description, told.parameters, strict=bool(told.strict))
        return Tool(told.name, where=f"{where}.function.parameters"), shown
    own = tool.custom
    form = None
    if own.format is not None:
        grammar = own.format.grammar
        syntax, definition = (None, None) if grammar is None else (grammar.syntax, grammar.definition)
        form = custom_form(own.name, own.format.type, syntax, definition)
    where += ".custom.format.grammar.definition"
    return Tool(own.name, is_custom=True, form=form, where=where), custom(own.name, own.description, form)


def _choice(choice: Any) -> tuple[str, frozenset[str] | None]:
    if choice is None:
        return "auto", None
    if isinstance(choice, str):
        return choice, None
    if isinstance(choice, models.AllowedChoice):
        given = choice.allowed_tools
        return given.mode, frozenset(_name(one) for one in given.tools)
    return _name(choice), None


def _name(choice: models.FunctionChoice | models.CustomChoice) -> str:
    return choice.function.name if isinstance(choice, models.FunctionChoice) else choice.custom.name
