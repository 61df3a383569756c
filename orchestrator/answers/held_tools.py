"""Tools whose calls are held to their schema or grammar while tokens are chosen."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.answers.tags import END_OF_PARAMETER, MOST_NAME, PARAMETER
from orchestrator.answers.tool_schema import KINDS, ToolSchema, pointed, tool_schemas
from orchestrator.serving.request import OutputForm
from placement.errors import InputError
from placement.files.quote import quote
from placement.units import size

Json = Any

_KEY = re.compile(rf"""[^\s"'=/<>]{{1,{MOST_NAME // 2}}}""")
# Of the tags that begin arguments. All that may come next become one expression while the model writes.
_MOST_TAGS_BYTES = 50_000
# Of the arguments as a whole. An argument at a time is held to its own schema, so that these would not be.
_NOT_HELD = (
    "allOf",
    "anyOf",
    "dependentRequired",
    "dependentSchemas",
    "dependencies",
    "else",
    "if",
    "maxProperties",
    "minProperties",
    "not",
    "oneOf",
    "patternProperties",
    "propertyNames",
    "then",
)
# Numbers are no longer than clients can read them.
_INTEGER = r"-?(?:0|[1-9][0-9]{0,17})"
_SCALARS = {
    "boolean": "true|false",
    "integer": _INTEGER,
    "null": "null",
    "number": rf"{_INTEGER}(?:\.[0-9]{{1,17}})?(?:[eE][+-]?[0-9]{{1,2}})?",
}
# Keywords that bind nothing, and those whose values are no schemas.
_NOTES = ("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly")
_VALUES = ("enum", "const", "default", "examples")


class ToolError(InputError):
    """A tool whose calls cannot be held to what it asks for; `tool`: its name."""

    def __init__(self, tool: str, message: str) -> None:
        super().__init__(message)
        self.tool = tool


@dataclass(frozen=True, slots=True)
class HeldTool:
    """What a call of one tool may be.

    Attributes:
        forms: of the arguments that it may have, by their names; None for a text that is free.
        required: names of those that it must have.
        takes_one: whether its one argument is also its last, so that the call's end has to follow it.
    """

    forms: Mapping[str, OutputForm | None]
    required: frozenset[str]
    takes_one: bool = False


def held_tools(tools: Sequence[Mapping[str, Json]], inputs: Mapping[str, OutputForm]) -> dict[str, HeldTool]:
    """The tools among these that are to be held, by name.

    Args:
        tools: of OpenAI's form; those with `strict` are held to their schema.
        inputs: forms of the one text that some of them take, by the tool's name.

    Raises:
        ToolError: a schema asks for what calls cannot be held to; names the tool.
    """
    found = {}
    schemas = tool_schemas(tools)
    for tool in tools:
        function = tool.get("function")
        if not isinstance(function, Mapping) or function.get("name") not in schemas:
            continue
        name = str(function["name"])
        if name in inputs:
            (key,) = schemas[name].properties
            found[name] = HeldTool({key: inputs[name]}, frozenset({key}), takes_one=True)
        elif function.get("strict") is True:
            try:
                found[name] = _strict(schemas[name], f"the tool {quote(name)} is strict, but")
            except InputError as error:
                raise ToolError(name, str(error)) from error
    return found


def _strict(schema: ToolSchema, where: str) -> HeldTool:
    """`where`: how the message of an InputError begins."""
    whole = schema.whole
    if schema.parameters and not whole:
        raise InputError(f"{where} the `$ref` of its parameters leads nowhere; expected a schema within them")
    if whole.get("type", "object") != "object":
        raise InputError(f"{where} its parameters are {quote(whole.get('type'))}; expected an object")
    for key in _NOT_HELD:
        if key in whole:
            raise InputError(
                f"{where} {quote(key)} at the top of its parameters cannot be followed; "
                "leave it out, or strict"
            )
    required = whole.get("required", [])
    if not isinstance(required, list) or not all(isinstance(key, str) for key in required):
        raise InputError(f"{where} `required` is no list of names")
    forms = {}
    for key in schema.properties:
        if not _KEY.fullmatch(key):
            raise InputError(
                f"{where} its parameter {quote(key)} cannot be written in a call: expected a name of at most "
                f"{MOST_NAME // 2} characters without white space, quotes, '=', '/', '<' and '>'"
            )
        forms[key] = _form(schema, key, f"{where} its parameter {quote(key)}")
    tags_bytes = sum(len(f"{PARAMETER}={key}>".encode()) for key in forms)
    if tags_bytes > _MOST_TAGS_BYTES:
        raise InputError(
            f"{where} the tags of its {len(forms):,} parameters take {size(tags_bytes)}; "
            f"expected at most {size(_MOST_TAGS_BYTES)}: leave some out, or strict"
        )
    if missing := [key for key in required if key not in forms]:
        raise InputError(f"{where} it requires {quote(missing[0])}, which is none of its properties")
    return HeldTool(forms, frozenset(required))


def _form(schema: ToolSchema, key: str, where: str) -> OutputForm | None:
    """What an argument is written as; None for a text, which may be anything. `where` as in `_strict`."""
    slip = _slip(schema.properties[key], schema.parameters, set())
    if slip is not None:
        raise InputError(f"{where} {slip}")
    argument = schema.argument(key)
    if argument.choices:
        texts = [choice if isinstance(choice, str) else _dumped(choice) for choice in argument.choices]
        if any(f"\n{END_OF_PARAMETER}" in f"\n{text}" for text in texts):
            raise InputError(f"{where} cannot be written in a call: a value has the end of an argument in it")
        return OutputForm("grammar", f"start: {' | '.join(map(_dumped, texts))}")
    if "string" in argument.kinds:
        return None
    own = schema.properties[key]
    if argument.kinds <= _SCALARS.keys() and _is_plain(own):
        return OutputForm("regex", "|".join(_SCALARS[kind] for kind in sorted(argument.kinds)))
    plain = _without_notes(own)
    if '"$ref"' not in _dumped(plain):
        return OutputForm("json_schema", _dumped(plain))
    # It refers to places in the whole schema, which becomes a part of its own.
    moved = {**_moved(plain), "$defs": {"tool": _moved(schema.parameters)}}
    return OutputForm("json_schema", _dumped(moved))


def _slip(schema: Json, root: Mapping[str, Json], followed: set[str]) -> str | None:
    """What is wrong with a schema so that nobody knows which kinds it allows; None where all is well.

    The argument would be free without a word. Other slips are left to whoever compiles the form.

    Args:
        root: the whole schema, into which references lead.
        followed: references that need not be looked at again.
    """
    if not isinstance(schema, Mapping):
        return None if schema is True else f"is {quote(schema)}; expected a schema"
    named = schema.get("type")
    for kind in named if isinstance(named, list) else [] if named is None else [named]:
        if not isinstance(kind, str) or kind not in KINDS:
            return f"has the type {quote(kind)}; expected one of {', '.join(sorted(KINDS))}"
    if "enum" in schema and not (isinstance(schema["enum"], list) and schema["enum"]):
        return "has an `enum` that is no list of values"
    branches = [one for key in ("anyOf", "oneOf", "allOf") for one in _list(schema.get(key))]
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference not in followed:
        followed.add(reference)
        branches.append(pointed(reference, root))
        if branches[-1] is None:
            return f"has the `$ref` {quote(reference)}, which leads nowhere within the parameters"
    return next((slip for one in branches if (slip := _slip(one, root, followed)) is not None), None)


def _list(value: Json) -> list[Json]:
    return value if isinstance(value, list) else []


def _is_plain(schema: Json) -> bool:
    """Whether it says the kinds of a value and no more of it."""
    if not isinstance(schema, Mapping) or not (rest := _without_notes(schema)).keys() <= {"type", "anyOf"}:
        return False
    branches = rest.get("anyOf", [])
    return isinstance(branches, list) and all(map(_is_plain, branches))


def _without_notes(schema: Mapping[str, Json]) -> dict[str, Json]:
    return {key: value for key, value in schema.items() if key not in _NOTES}


def _moved(schema: Json) -> Json:
    """The same where it is not the whole document but its part `$defs/tool`."""
    if isinstance(schema, list):
        return [_moved(one) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    found = {}
    for key, value in schema.items():
        if key == "$ref" and isinstance(value, str) and value.startswith("#"):
            found[key] = f"#/$defs/tool{value[1:]}"
        else:
            found[key] = value if key in _VALUES else _moved(value)
    return found


def _dumped(value: Json) -> str:
    return json.dumps(value, ensure_ascii=False)
