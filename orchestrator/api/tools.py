"""Tools of all APIs in one form: functions, whose names lead back to what the client calls them.

A custom tool takes one text. To the model it is a function with the one parameter `input`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from orchestrator.api.errors import invalid
from orchestrator.serving.request import OutputForm

Json = Any

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}\Z")
# Words that a conversation's `tool_choice` has for something else.
_TAKEN = frozenset({"auto", "none", "required"})
# The parameter that has a custom tool's text.
INPUT = "input"


@dataclass(frozen=True, slots=True)
class Tool:
    """What the client calls it.

    Attributes:
        name: within `namespace`, where it has one.
        form: what the text of a custom tool follows.
        where: the path in the request of what its calls are held to.
    """

    name: str
    is_custom: bool = False
    namespace: str | None = None
    form: OutputForm | None = None
    where: str = field(default="tools", compare=False)


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools of a request.

    Attributes:
        functions: as the model is told of them, in OpenAI's form.
        tools: by the model's name for them.
        choice: as `Conversation.tool_choice` has it.
    """

    functions: tuple[Mapping[str, Json], ...] = ()
    tools: Mapping[str, Tool] = field(default_factory=dict)
    choice: str = "auto"

    @property
    def inputs(self) -> dict[str, OutputForm]:
        """As `Conversation.inputs` has them."""
        return {name: tool.form for name, tool in self.tools.items() if tool.form is not None}

    @property
    def places(self) -> dict[str, str]:
        """Where in the request a tool is at fault, by the field of `Refused`."""
        return {f"tools.{name}": tool.where for name, tool in self.tools.items()}

    def get(self, name: str) -> Tool:
        """The tool that the model calls so."""
        return self.tools.get(name, Tool(name))


def function(
    name: str, description: str | None, parameters: Mapping[str, Json] | None, *, strict: bool = False
) -> dict[str, Json]:
    """A function in OpenAI's form."""
    inner: dict[str, Json] = {"name": name}
    if description:
        inner["description"] = description
    inner["parameters"] = parameters or {"type": "object", "properties": {}}
    if strict:
        inner["strict"] = True
    return {"type": "function", "function": inner}


def custom(name: str, description: str | None, form: OutputForm | None) -> dict[str, Json]:
    """A custom tool as a function. `form`: what its text follows."""
    text: dict[str, Json] = {"type": "string"}
    told = description or ""
    if form is not None:
        syntax = "regex" if form.kind == "regex" else "lark"
        told += f"\nThe input follows this {syntax} grammar:\n{form.value}"
        if syntax == "regex":
            text["pattern"] = form.value
    schema = {
        "type": "object",
        "properties": {INPUT: text},
        "required": [INPUT],
        "additionalProperties": False,
    }
    return function(name, told.strip(), schema)


def custom_form(
    name: str, kind: Literal["text", "grammar"], syntax: str | None, definition: str | None
) -> OutputForm | None:
    """What the `format` of a custom tool says; None where any text will do.

    Raises:
        ApiError: it is a grammar and does not give one.
    """
    if kind == "text":
        return None
    if syntax is None or definition is None:
        raise invalid("tools", f"the format of {name[:50]!r} is a grammar without its syntax and definition")
    return OutputForm("regex" if syntax == "regex" else "grammar", definition)


def custom_arguments(text: str) -> dict[str, Json]:
    """A custom tool's text as the model wrote it."""
    return {INPUT: text}


def custom_text(arguments: Mapping[str, Json]) -> str:
    """The text that the model gave a custom tool."""
    text = arguments.get(INPUT)
    return text if isinstance(text, str) else json.dumps(dict(arguments), ensure_ascii=False)


def arguments_of(text: str) -> dict[str, Json]:
    """A call's arguments from the history; what is no JSON object, as when an answer was cut, as a text."""
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        found = text
    return found if isinstance(found, dict) else custom_arguments(text)


def gathered(
    named: Sequence[tuple[Tool, Mapping[str, Json]]], choice: str, allowed: frozenset[str] | None, where: str
) -> Tools:
    """All tools of a request.

    Args:
        named: each tool with its function.
        choice: "auto", "none", "required", or a name.
        allowed: names that may be called; None for all.
        where: the request's field for a choice.

    Raises:
        ApiError: a name is bad or there twice, or the choice is none of them.
    """
    names = [str(told["function"]["name"]) for _, told in named]
    for name in names:
        if not _NAME.match(name):
            raise invalid("tools", f"{name[:50]!r} is no name: 1 to 128 of A-Z, a-z, 0-9, _, . and -")
        if name in _TAKEN:
            raise invalid("tools", f"{name!r} cannot be a tool's name")
    name, times = Counter(names).most_common(1)[0] if names else ("", 0)
    if times > 1:
        raise invalid("tools", f"{name!r} is there twice")
    if choice not in _TAKEN and choice not in names:
        raise invalid(where, f"{choice[:50]!r} is none of the tools")
    if allowed is not None and (strange := allowed - set(names)):
        raise invalid(where, f"{min(strange)[:50]!r} is none of the tools")
    kept = [(tool, told) for tool, told in named if allowed is None or told["function"]["name"] in allowed]
    if choice == "required" and not kept:
        raise invalid(where, "a call is required, but there are no tools")
    return Tools(
        tuple(told for _, told in kept),
        {str(told["function"]["name"]): tool for tool, told in kept},
        choice,
    )
