"""The values of a call's arguments, typed by the JSON schema of the tool."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from orchestrator.answers.literals import parse_literal

Json = Any

KINDS = frozenset({"string", "integer", "number", "boolean", "null", "object", "array"})
TEXT_KINDS = frozenset({"string", "null"})
NULLS = ("null", "None")

# Schemas come from clients.
_MOST_DEPTH = 32
_INTEGER = re.compile(r"[+-]?\d{1,4000}")
_JSON_INTEGER = re.compile(r"-?(?:0|[1-9]\d{0,3999})")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_JSON_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")


@dataclass(frozen=True, slots=True)
class ArgumentType:
    """What an argument may be.

    Attributes:
        kinds: of `KINDS`; all of them where the schema does not say.
        choices: the only values allowed; empty for no such list.
    """

    kinds: frozenset[str] = KINDS
    choices: tuple[Json, ...] = ()

    @property
    def is_text(self) -> bool:
        """Whether a value is used as it is written, but for one that says null."""
        return "string" in self.kinds and self.kinds <= TEXT_KINDS and not self.choices

    def value(self, text: str) -> Json:
        """The value that a text stands for; the text itself where it is nothing that is allowed."""
        return self._value(text, unpack=True)

    def _value(self, text: str, unpack: bool) -> Json:
        stripped = text.strip()
        for choice in (text, stripped):
            if choice in self.choices:
                return choice
        if self.kinds == {"string"}:
            return text
        as_text = "string" in self.kinds
        if "null" in self.kinds and (stripped in NULLS or (not stripped and not as_text)):
            return None
        if "boolean" in self.kinds and stripped in ("true", "false", "True", "False"):
            return stripped.lower() == "true"
        if "boolean" in self.kinds and not as_text and stripped.lower() in ("true", "false"):
            return stripped.lower() == "true"
        number = self._number(stripped, as_text)
        if number is not None:
            return number
        # Where a text is allowed too, only what looks like a list or an object is taken for one.
        if as_text and not stripped.startswith(("{", "[")):
            return text
        try:
            value = parse_literal(stripped)
        except ValueError:
            return text
        if _kind(value) in self.kinds:
            return value
        # A value written as a text within quotes.
        return self._value(value, unpack=False) if unpack and isinstance(value, str) else text

    def _number(self, text: str, as_text: bool) -> int | float | None:
        """Where a text is allowed too, only numbers as JSON has them: 007 is a name."""
        if "integer" not in self.kinds and "number" not in self.kinds:
            return None
        if (_JSON_INTEGER if as_text else _INTEGER).fullmatch(text):
            return int(text)
        if not (_JSON_NUMBER if as_text else _NUMBER).fullmatch(text):
            return None
        value = float(text)
        if abs(value) == float("inf"):
            return None
        if "number" in self.kinds:
            return value
        return int(value) if value.is_integer() and abs(value) < 2**53 else None


@dataclass(frozen=True, slots=True)
class ToolSchema:
    """A tool and the schema of its arguments, an empty one where the client gave none."""

    name: str
    parameters: Mapping[str, Json]
    _known: dict[str, ArgumentType] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def whole(self) -> Mapping[str, Json]:
        """The schema of all arguments together, or what it refers to."""
        return _resolved(self.parameters, self.parameters)

    @property
    def properties(self) -> Mapping[str, Json]:
        """Schemas of the arguments by name."""
        properties = self.whole.get("properties")
        return properties if isinstance(properties, Mapping) else {}

    def has(self, key: str) -> bool:
        """Whether the schema names this argument."""
        return key in self.properties

    def argument(self, key: str) -> ArgumentType:
        """What an argument may be: anything where the schema does not name it."""
        properties = self.properties
        schema = properties[key] if key in properties else self.whole.get("additionalProperties")
        return ArgumentType(_kinds(schema, self.parameters, {}, 0), tuple(_choices(schema, self.parameters)))

    def typed(self, arguments: Mapping[str, Json]) -> dict[str, Json]:
        """Arguments with texts made into what the schema asks for."""
        found = {}
        for key, value in arguments.items():
            found[str(key)] = value
            if isinstance(value, str):
                argument = self.argument(str(key))
                # A text that may be a text was meant as one.
                if "string" not in argument.kinds:
                    found[str(key)] = argument.value(value)
        return found


def tool_schemas(tools: Sequence[Mapping[str, Json]]) -> dict[str, ToolSchema]:
    """Tools by name, of OpenAI's form {"type": "function", "function": {...}}."""
    found = {}
    for tool in tools:
        function = tool.get("function", tool)
        if isinstance(function, Mapping) and isinstance(function.get("name"), str):
            parameters = function.get("parameters")
            known = parameters if isinstance(parameters, Mapping) else {}
            found[function["name"]] = ToolSchema(function["name"], known)
    return found


def _kind(value: Json) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    kinds = ((int, "integer"), (float, "number"), (str, "string"), (list, "array"))
    return next((kind for of, kind in kinds if isinstance(value, of)), "object")


def _kinds(
    schema: Json, root: Mapping[str, Json], known: dict[str, frozenset[str]], depth: int
) -> frozenset[str]:
    """The kinds that a schema allows.

    Args:
        known: of what references point at. A schema that refers to itself adds nothing to its own kinds.
    """
    if not isinstance(schema, Mapping) or depth > _MOST_DEPTH:
        return KINDS
    reference = schema.get("$ref")
    if isinstance(reference, str):
        if reference not in known:
            known[reference] = frozenset()
            known[reference] = _kinds(pointed(reference, root), root, known, depth + 1)
        return known[reference]
    kinds = _own_kinds(schema)
    for key in ("anyOf", "oneOf"):
        branches = schema.get(key)
        if isinstance(branches, list) and branches:
            allowed = [_kinds(branch, root, known, depth + 1) for branch in branches]
            kinds &= frozenset[str]().union(*allowed)
    for branch in _list(schema.get("allOf")):
        kinds &= _kinds(branch, root, known, depth + 1)
    if schema.get("nullable") is True:
        kinds |= {"null"}
    return kinds or KINDS


def _own_kinds(schema: Mapping[str, Json]) -> frozenset[str]:
    named = schema.get("type")
    names = [named] if isinstance(named, str) else _list(named)
    kinds = frozenset(name for name in names if isinstance(name, str)) & KINDS
    if kinds:
        return kinds | {"integer"} if "number" in kinds else kinds
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        return frozenset(map(_kind, schema["enum"]))
    if "const" in schema:
        return frozenset({_kind(schema["const"])})
    if "properties" in schema:
        return frozenset({"object"})
    return frozenset({"array"}) if "items" in schema else KINDS


def _choices(schema: Json, root: Mapping[str, Json]) -> Iterable[Json]:
    resolved = _resolved(schema, root)
    if "const" in resolved:
        return [resolved["const"]]
    return _list(resolved.get("enum"))


def _resolved(schema: Json, root: Mapping[str, Json]) -> Mapping[str, Json]:
    """A schema, or the one that it refers to."""
    for _ in range(_MOST_DEPTH):
        if not isinstance(schema, Mapping):
            return {}
        if not isinstance(schema.get("$ref"), str):
            return schema
        schema = pointed(schema["$ref"], root)
    return {}


def pointed(reference: str, root: Mapping[str, Json]) -> Json:
    """What a JSON pointer such as #/$defs/Point points at; None for one into another document."""
    if not reference.startswith("#"):
        return None
    found: Json = root
    for part in unquote(reference[1:]).split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping):
            found = found.get(key)
        elif isinstance(found, list) and key.isdecimal() and len(key) < 9 and int(key) < len(found):
            found = found[int(key)]
        else:
            return None
    return found


def _list(value: Json) -> list[Json]:
    return value if isinstance(value, list) else []
