"""What calls of held tools may be, and how the parser reads them."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest

from orchestrator.answers.held_tools import HeldTool, held_tools
from orchestrator.answers.parsed import Parsed, merge
from orchestrator.answers.tagged_parser import TaggedParser
from orchestrator.answers.tool_schema import ToolSchema
from orchestrator.serving.answer import CallEnded, Text
from orchestrator.serving.request import OutputForm
from placement.errors import InputError

INPUT = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}


def strict(**parameters: Any) -> list[dict[str, Any]]:
    parameters = {"type": "object", **parameters}
    return [{"type": "function", "function": {"name": "f", "parameters": parameters, "strict": True}}]


def form(schema: Any, **more: Any) -> OutputForm | None:
    return held_tools(strict(properties={"a": schema}, **more), {})["f"].forms["a"]


def test_tools_that_are_not_strict_and_have_no_form_are_free() -> None:
    free = {"type": "function", "function": {"name": "g", "parameters": INPUT, "strict": False}}
    told = {"type": "function", "function": {"name": "h", "parameters": INPUT}}
    of_text = OutputForm("regex", "a+")
    assert held_tools([free, told], {"h": of_text}) == {
        "h": HeldTool({"input": of_text}, frozenset({"input"}), takes_one=True)
    }


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string"},
        {"type": ["string", "integer"]},
        {},
        True,
        {"type": None},
        {"anyOf": [{"type": "string"}, {"$ref": "#/properties/a"}]},
        {"anyOf": [{"type": "string"}, {"type": "null"}]},
    ],
)
def test_what_may_be_a_string_is_free(schema: Any) -> None:
    assert form(schema) is None


def test_other_arguments_follow_their_schema() -> None:
    assert form({"enum": ["a", 1, None]}) == OutputForm("grammar", 'start: "a" | "1" | "null"')
    whole = form({"type": "array", "items": {"type": "string"}, "description": "d"})
    assert whole == OutputForm("json_schema", '{"type": "array", "items": {"type": "string"}}')
    scalar = form({"anyOf": [{"type": "boolean"}, {"type": "null"}], "default": None})
    assert scalar == OutputForm("regex", "true|false|null")
    assert form({"type": "integer", "minimum": 1}) == OutputForm(
        "json_schema", '{"type": "integer", "minimum": 1}'
    )


def test_a_schema_that_refers_to_another_place_takes_the_place_with_it() -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}, "$ref": {"type": "null"}}}
    found = form({"$ref": "#/$defs/node"}, **{"$defs": {"node": node}})
    assert found is not None
    schema = json.loads(found.value)
    assert schema["$ref"] == "#/$defs/tool/$defs/node"
    assert schema["$defs"]["tool"]["$defs"]["node"]["properties"] == {
        "next": {"$ref": "#/$defs/tool/$defs/node"},
        "$ref": {"type": "null"},
    }


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"type": "array"}, "its parameters are 'array'; expected an object"),
        ({"$ref": "#/nowhere"}, "leads nowhere"),
        ({"anyOf": []}, "'anyOf' at the top"),
        ({"required": ["b"]}, "it requires 'b'"),
        ({"required": "b"}, "`required` is no list"),
        ({"properties": {"a b": {"type": "string"}}}, "parameter 'a b' cannot be written"),
        ({"properties": {"a": {"enum": ["x\n</parameter>"]}}}, "parameter 'a' cannot be written"),
        ({"properties": {"a": {"type": "strng"}}}, "'a' has the type 'strng'; expected one of array, "),
        ({"properties": {"a": {"type": ["integer", {}]}}}, "'a' has the type {}"),
        ({"properties": {"a": {"anyOf": [{"type": "strng"}, {"type": "null"}]}}}, "has the type 'strng'"),
        ({"properties": {"a": {"$ref": "#/b"}}, "b": {"type": "strng"}}, "has the type 'strng'"),
        (
            {"properties": {"a": {"$ref": "#/nowhere"}}},
            "'a' has the `\\$ref` '#/nowhere', which leads nowhere",
        ),
        ({"properties": {"a": {"type": "string", "enum": "x"}}}, "'a' has an `enum` that is no list"),
        ({"properties": {"a": "string"}}, "'a' is 'string'; expected a schema"),
        ({"properties": {f"{'x' * 90}{n}": {} for n in range(3000)}}, r"3,000 parameters take 31\d\.\d kB"),
    ],
)
def test_what_calls_cannot_be_held_to_is_refused(parameters: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"^the tool 'f' is strict, but .*{message}"):
        held_tools(strict(**parameters), {})


def test_what_is_no_list_of_schemas_is_left_to_whoever_compiles_it() -> None:
    assert form({"type": "integer", "anyOf": 5}) == OutputForm(
        "json_schema", '{"type": "integer", "anyOf": 5}'
    )


SCHEMA = {
    "type": "object",
    "properties": {"text": {"type": "string"}, "n": {"type": "integer"}, "list": {"type": "array"}},
    "required": ["text", "n"],
}
TOOLS = [
    *strict(**SCHEMA),
    {"type": "function", "function": {"name": "write", "parameters": INPUT}},
]
CALLS = {
    "a line in a list": (
        '<tool_call>\n<function=f>\n<parameter=list>\n["</parameter>", "</function>"]\n</parameter>\n'
        "<parameter=text>\nx\n</parameter>\n<parameter=n>\n7\n</parameter>\n</function>\n</tool_call>\nDone.",
        {"list": ["</parameter>", "</function>"], "text": "x", "n": 7},
    ),
    "an end that comes too early": (
        "<tool_call>\n<function=f>\n<parameter=text>\nx\n</function>\n</tool_call>\n<parameter=n>\n7\n</parameter>\n"
        "</function>\n</tool_call>\nDone.",
        {"text": "x", "n": 7},
    ),
    "a name that is not known": (
        "<tool_call>\n<function=f>\n<parameter=who>\nx\n</parameter>\n<parameter=text>\ny\n</parameter>\n"
        "<parameter=n>\n7\n</parameter>\n</function>\n</tool_call>\nDone.",
        {"text": "y", "n": 7},
    ),
    "tags in a text with a grammar": (
        "<tool_call>\n<function=write>\n<parameter=input>\n<function=x>\n</parameter>\n<parameter=n>\n</function>\n"
        "\n</parameter>\n</function>\n</tool_call>\nDone.",
        {"input": "<function=x>\n</parameter>\n<parameter=n>\n</function>\n"},
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_of_held_tools_are_read_as_they_are_held_wherever_they_are_cut(name: str) -> None:
    text, arguments = CALLS[name]
    held = held_tools(TOOLS, {"write": OutputForm("regex", "(.|\n)*")})
    luck = Random(name)
    for most in (len(text), 1, 3, 9, 20):
        parser = TaggedParser(TOOLS, inside=False, held=held)
        parsed: list[Parsed] = []
        at = 0
        while at < len(text):
            stop = at + luck.randint(min(most, 1), most)
            parsed += parser.push(text[at:stop])
            at = stop
        events = [one.event for one in merge([*parsed, *parser.finish()])]
        assert [dict(event.arguments) for event in events if isinstance(event, CallEnded)] == [arguments]
        assert "".join(event.text for event in events if isinstance(event, Text)).strip() == "Done."


def test_a_tool_schema_knows_its_properties_through_a_reference() -> None:
    schema = ToolSchema("f", {"$ref": "#/$defs/p", "$defs": {"p": SCHEMA}})
    assert schema.properties == SCHEMA["properties"]
