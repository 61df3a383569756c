"""What the text of an argument becomes, by the schema of its tool."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.answers.literals import MOST_DEPTH, parse_literal
from orchestrator.answers.tool_schema import ToolSchema, tool_schemas
from tests.examples import examples

DEFINITIONS = {
    "Count": {"type": "integer"},
    "Node": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}, {"$ref": "#/$defs/Count"}]},
    "a/b c": {"type": "boolean"},
}


def typed(schema: Any, text: str) -> Any:
    parameters = {"type": "object", "properties": {"x": schema}, "$defs": DEFINITIONS}
    return ToolSchema("f", parameters).argument("x").value(text)


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, " 12 ", " 12 "),
        ({"type": "string"}, '{"a": 1}', '{"a": 1}'),
        ({"type": "string", "enum": ["a", "b"]}, " a\n", "a"),
        ({"type": "string", "enum": ["a", "b"]}, "c", "c"),
        ({"enum": ["a", 2, None]}, "2", 2),
        ({"enum": ["a", 2, None]}, "None", None),
        ({"const": 3}, "3", 3),
        ({"type": "integer"}, " 12\n", 12),
        ({"type": "integer"}, "+012", 12),
        ({"type": "integer"}, "12.0", 12),
        ({"type": "integer"}, "12.5", "12.5"),
        ({"type": "integer"}, '"12"', 12),
        ({"type": "integer"}, "twelve", "twelve"),
        ({"type": "integer"}, "9" * 5000, "9" * 5000),
        ({"type": "number"}, "1.5", 1.5),
        ({"type": "number"}, "-.5", -0.5),
        ({"type": "number"}, "12", 12),
        ({"type": "number"}, "1e999", "1e999"),
        ({"type": "number"}, "NaN", "NaN"),
        ({"type": "boolean"}, "True", True),
        ({"type": "boolean"}, "FALSE", False),
        ({"type": "boolean"}, "1", "1"),
        ({"type": "null"}, "", None),
        ({"type": "integer", "nullable": True}, "None", None),
        ({"type": "integer", "nullable": True}, "", None),
        ({"type": ["integer", "null"]}, "null", None),
        ({"type": ["string", "integer"]}, "12", 12),
        ({"type": ["string", "integer"]}, "012", "012"),
        ({"type": ["string", "number"]}, "1.", "1."),
        ({"type": ["string", "boolean"]}, "true", True),
        ({"type": ["string", "boolean"]}, "TRUE", "TRUE"),
        ({"type": ["string", "null"]}, "", ""),
        ({"type": ["string", "array"]}, "[1]", [1]),
        ({"type": ["string", "array"]}, "[see below", "[see below"),
        ({"type": ["string", "array"]}, "(1, 2)", "(1, 2)"),
        ({"anyOf": [{"type": "integer"}, {"type": "array"}]}, "[1, 2]", [1, 2]),
        ({"oneOf": [{"type": "boolean"}, {"type": "string"}]}, "yes", "yes"),
        ({"allOf": [{"type": "integer"}]}, "3", 3),
        ({"$ref": "#/$defs/Count"}, "3", 3),
        ({"$ref": "#/$defs/Node"}, "3", 3),
        ({"$ref": "#/$defs/Node"}, "null", None),
        ({"$ref": "#/$defs/a~1b%20c"}, "true", True),
        ({"$ref": "https://example.org/schema"}, "3", 3),
        ({"$ref": "#/$defs/absent"}, "x", "x"),
        ({"type": "object"}, '{"a": [1, null]}', {"a": [1, None]}),
        ({"type": "object"}, "{'a': True, 'b': (1, None,)}", {"a": True, "b": [1, None]}),
        ({"type": "object"}, "{'a': 'it\\'s', \"b\": '\\x41'}", {"a": "it's", "b": "A"}),
        ({"type": "object"}, "{'a': true, \"b\": False}", {"a": True, "b": False}),
        ({"type": "object"}, '"{\\"a\\": 1}"', {"a": 1}),
        ({"type": "object"}, "[1]", "[1]"),
        ({"type": "object"}, "{'a': f()}", "{'a': f()}"),
        ({"properties": {}}, "{}", {}),
        ({"type": "array"}, "[1, 2,]", [1, 2]),
        ({"type": "array"}, "[1, NaN]", "[1, NaN]"),
        ({"items": {}}, "[]", []),
        ({}, "12", 12),
        ({}, "true", True),
        ({}, '{"a": 1}', {"a": 1}),
        ({}, '"quoted"', '"quoted"'),
        ({}, "plain", "plain"),
        (True, "[1]", [1]),
        ({"type": "no such type"}, "12", 12),
        ({"type": 3, "anyOf": "x", "enum": 4}, "12", 12),
    ],
)  # fmt: skip
def test_values_by_schema(schema: Any, text: str, value: Any) -> None:
    found = typed(schema, text)
    assert found == value
    assert type(found) is type(value)


def test_arguments_that_the_schema_does_not_name() -> None:
    assert ToolSchema("f", {}).argument("x").value("12") == 12
    strings = ToolSchema("f", {"additionalProperties": {"type": "string"}})
    assert strings.argument("x").value("12") == "12"


def test_parameters_may_be_a_reference() -> None:
    root = {"$ref": "#/$defs/P", "$defs": {"P": {"properties": {"x": {"type": "string"}}}}}
    assert ToolSchema("f", root).argument("x").value("12") == "12"
    assert ToolSchema("f", {"$ref": "#"}).argument("x").value("12") == 12


def test_tools_that_are_not_as_they_should_be_are_left_out() -> None:
    tools: list[Any] = [{"function": {"name": 3}}, {"function": None}, {}, {"name": "flat", "parameters": []}]
    assert list(tool_schemas(tools)) == ["flat"]


def test_texts_in_an_old_call_are_typed_where_no_text_is_allowed() -> None:
    properties = {"a": {"type": "integer"}, "b": {"type": "string"}, "c": {"type": ["string", "integer"]}}
    schema = ToolSchema("f", {"properties": properties})
    given_arguments = {"a": "1", "b": "1", "c": "1", "d": [1]}
    assert schema.typed(given_arguments) == {"a": 1, "b": "1", "c": "1", "d": [1]}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=12,
)  # fmt: skip


@given(JSON)
def test_literals_of_json_and_python_are_read_back(value: Any) -> None:
    assert parse_literal(json.dumps(value)) == value
    assert parse_literal(json.dumps(value, ensure_ascii=False, indent=1)) == value
    written = repr(value)
    # What cannot be shown is written with escapes that JSON does not have.
    if "\\U" not in written:
        assert parse_literal(written) == value


@given(st.text(alphabet="[]{}()'\"\\u0aefx1,:-. TrueNo"))
@examples(200)
def test_no_text_breaks_the_reader(text: str) -> None:
    try:
        value = parse_literal(text)
    except ValueError:
        return
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


@pytest.mark.parametrize("text", ["[" * 100_000, "[" * 70 + "]" * 70, "{'a':" * 70, '"\\ud800"', "'\\ud800'"])
def test_what_nests_too_deeply_or_is_no_unicode_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_literal(text)
    assert parse_literal("[" * MOST_DEPTH + "]" * MOST_DEPTH)


@given(st.recursive(st.sampled_from([True, {}, {"type": "string"}, {"$ref": "#/$defs/Node"}]), lambda inner: (
    st.fixed_dictionaries({"anyOf": st.lists(inner)}) | st.fixed_dictionaries({"allOf": st.lists(inner)})
    | st.fixed_dictionaries({"type": inner, "enum": inner})
)), st.sampled_from(["", "null", "1", "[1]", "x"]))  # fmt: skip
def test_any_schema_gives_some_value(schema: Any, text: str) -> None:
    json.dumps(typed(schema, text))
