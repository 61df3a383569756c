"""Anthropic's messages, as a request of the engine."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.api import messages_models as models
from orchestrator.api.carried import opened
from orchestrator.api.effort import reasoning_tokens
from orchestrator.api.errors import invalid
from orchestrator.api.sampling import sampling
from orchestrator.api.tools import Tool, Tools, function, gathered
from orchestrator.api.turns import PICTURE_NOTE, Turn, answered, call, conversation, result, said, text_only
from orchestrator.api.validated import stops
from orchestrator.serving.request import Conversation, GenerationRequest, OutputForm

# Claude Code writes one into the system prompt, with a number that changes in every request.
_HEADER_LINE = re.compile(r"^x-anthropic-[a-z0-9-]+:.*(?:\n|\Z)", re.MULTILINE | re.IGNORECASE)
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


@dataclass(frozen=True, slots=True)
class MessageAsked:
    """`shows_thinking`: whether thinking blocks have their text, or only what brings it back to us."""

    request: GenerationRequest
    tools: Tools
    shows_thinking: bool


def message_asked(body: models.MessagesBody, client: str, seed: int) -> MessageAsked:
    """What is asked of the engine.

    Args:
        seed: for a request that names none.

    Raises:
        ApiError: a field is at fault.
    """
    tools = _tools(body)
    form = None if body.output_config is None else body.output_config.format
    request = GenerationRequest(
        client=client,
        prompt=prompt_of(body, tools),
        sampling=sampling(body, seed),
        max_tokens=body.max_tokens,
        stop=stops(body.stop_sequences, "stop_sequences"),
        ignore_eos=body.ignore_eos,
        output=None if form is None else OutputForm("json_schema", _dumped(form)),
        reasoning_tokens=_thinking_tokens(body),
    )
    display = None if isinstance(body.thinking, models.ThinkingDisabled | None) else body.thinking.display
    return MessageAsked(request, tools, display != "omitted")


def prompt_of(body: models.Prompted, tools: Tools | None = None) -> Conversation:
    """The conversation as the model sees it.

    Raises:
        ApiError: a field is at fault.
    """
    if body.messages[-1].role == "assistant":
        raise invalid("messages", "the last one is the assistant's, and the model cannot go on with it")
    told = _tools(body) if tools is None else tools
    turns = [said("system", _system(body.system))] if body.system else []
    for number, message in enumerate(body.messages):
        turns += _turns(message, f"messages.{number}.content")
    single = body.tool_choice is not None and bool(body.tool_choice.disable_parallel_tool_use)
    return Conversation(conversation(turns, "messages"), told.functions, told.choice, not single)


def _dumped(form: models.SchemaFormat) -> str:
    return json.dumps(form.schema_, ensure_ascii=False)


def _thinking_tokens(body: models.MessagesBody) -> int | None:
    """Without `thinking` there is none, as Anthropic has it."""
    if isinstance(body.thinking, models.ThinkingEnabled):
        return body.thinking.budget_tokens
    if isinstance(body.thinking, models.ThinkingAdaptive):
        return reasoning_tokens(None if body.output_config is None else body.output_config.effort)
    return 0


def _system(system: str | Sequence[models.TextBlock]) -> str:
    texts = [system] if isinstance(system, str) else [block.text for block in system]
    kept = (_HEADER_LINE.sub("", text) for text in texts)
    return "\n\n".join(text for text in kept if text.strip())


def _turns(message: models.Message, field: str) -> list[Turn]:
    if isinstance(message, models.SystemMessage):
        return [said("system", _system(message.content))]
    if isinstance(message.content, str):
        return [said(message.role, message.content)]
    if isinstance(message, models.AssistantMessage):
        return [_assistant(message)]
    turns, texts = [], []
    for number, block in enumerate(message.content):
        if isinstance(block, models.TextBlock):
            texts.append(block.text)
        elif isinstance(block, models.ToolResultBlock):
            turns.append(result(block.tool_use_id, _result(block)))
        else:
            raise text_only(block.type, f"{field}.{number}")
    # Templates want results right after the calls; what the user says beside them comes after.
    return [*turns, said("user", "\n\n".join(texts))] if texts or not turns else turns


def _assistant(message: models.AssistantMessage) -> Turn:
    assert not isinstance(message.content, str)
    text, reasoning, calls = "", "", []
    for block in message.content:
        if isinstance(block, models.TextBlock):
            text += block.text
        elif isinstance(block, models.ThinkingBlock):
            reasoning += block.thinking or opened(block.signature)
        elif isinstance(block, models.ToolUseBlock):
            calls.append(call(block.id, block.name, block.input))
    return answered(text, reasoning, calls)


def _result(block: models.ToolResultBlock) -> str:
    if block.content is None or isinstance(block.content, str):
        text = block.content or ""
    else:
        parts = (part.text if isinstance(part, models.TextBlock) else PICTURE_NOTE for part in block.content)
        text = "\n".join(parts)
    return f"Error: {text}" if block.is_error and "error" not in text[:50].lower() else text


def _tools(body: models.Prompted) -> Tools:
    named = []
    for number, tool in enumerate(body.tools):
        if tool.type not in (None, "custom"):
            raise invalid(f"tools.{number}", f"{tool.type[:50]!r} is not supported: give a tool of your own")
        if tool.input_schema is None:
            raise invalid(f"tools.{number}.input_schema", "field required")
        told = function(tool.name, tool.description, tool.input_schema, strict=bool(tool.strict))
        named.append((Tool(tool.name, where=f"tools.{number}.input_schema"), told))
    if isinstance(body.tool_choice, models.NamedChoice):
        choice = body.tool_choice.name
    else:
        choice = "auto" if body.tool_choice is None else _CHOICES[body.tool_choice.type]
    return gathered(named, choice, None, "tool_choice")
