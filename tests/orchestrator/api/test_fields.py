"""Every field of every request does what the table says, and docs/api.md shows that table."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from orchestrator.answers.output_form import MOST_FORM_BYTES
from orchestrator.api.bodies import MOST_BRACKETS, MOST_BYTES, MOST_DEPTH
from orchestrator.api.chat_answer import FINISH_REASONS
from orchestrator.api.effort import REASONING_TOKENS
from orchestrator.api.errors import ApiError
from orchestrator.api.fields import TABLES, Field, wanted
from orchestrator.api.messages_answer import STOP_REASONS
from orchestrator.api.openapi import BODIES
from orchestrator.api.responses_store import MOST_BYTES as MOST_STORED_BYTES
from orchestrator.api.responses_store import MOST_RESPONSES
from placement.units import size

# One process imports the clients, which takes seconds.
pytestmark = pytest.mark.xdist_group("clients")

PAGE = (Path(__file__).parents[3] / "docs" / "api.md").read_text(encoding="utf-8")
FIELDS = [(route, field) for route, table in TABLES.items() for field in table]
NAMES = [f"{route.rsplit('/', 1)[1]}-{field.name}" for route, field in FIELDS]


def of_clients() -> dict[str, tuple[type, ...]]:
    """What the makers' own clients send, by route."""
    from anthropic.types import message_count_tokens_params, message_create_params
    from anthropic.types.beta import message_count_tokens_params as anthropic_beta_count
    from anthropic.types.beta import message_create_params as anthropic_beta
    from openai.types import completion_create_params
    from openai.types.chat import completion_create_params as chat_create_params
    from openai.types.responses import response_create_params

    return {
        "POST /v1/chat/completions": (chat_create_params.CompletionCreateParamsBase,),
        "POST /v1/completions": (completion_create_params.CompletionCreateParamsBase,),
        "POST /v1/responses": (response_create_params.ResponseCreateParamsBase,),
        "POST /v1/messages": (
            message_create_params.MessageCreateParamsBase,
            anthropic_beta.MessageCreateParamsBase,
        ),
        "POST /v1/messages/count_tokens": (
            message_count_tokens_params.MessageCountTokensParams,
            anthropic_beta_count.MessageCountTokensParams,
        ),
    }


def row(field: Field) -> str:
    """A line of the page."""
    passes = ", ".join(f"`{value!r}`" for value in field.but).replace("False", "false").replace("'", '"')
    note = f"{field.note}; {passes} passes" if passes else field.note
    return f"| `{field.name}` | {field.treatment} | {note} |"


def test_the_page_shows_the_tables() -> None:
    for route, table in TABLES.items():
        shown = PAGE.split(f"### `{route}`\n", 1)[1].split("\n#", 1)[0]
        rows = [line for line in shown.splitlines() if line.startswith("| `")]
        wanted_rows = [row(field) for field in table]
        assert rows == wanted_rows, "docs/api.md should have:\n" + "\n".join(wanted_rows)


def bounds(model: type[BaseModel]) -> dict[str, set[str]]:
    """How a request's bounds are to be written, by the field that has them or has them within."""
    found: dict[str, set[str]] = {}
    for name, of in model.model_fields.items():
        numbers = [*_numbers(of.metadata), *_numbers(_within(of.annotation))]
        found[name] = {_written(number) for number in numbers}
    return found


def _within(annotation: Any) -> list[Any]:
    """What is said of a field's alternatives, and of fields of objects that are alternatives."""
    found = [*getattr(annotation, "__metadata__", ())]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for of in annotation.model_fields.values():
            found += [*of.metadata, *_within(of.annotation)]
    elif get_origin(annotation) is not list:
        for part in get_args(annotation):
            found += _within(part)
    return found


def _numbers(metadata: Iterable[Any]) -> list[float]:
    unpacked = [one for of in metadata for one in (of.metadata if isinstance(of, FieldInfo) else [of])]
    names = ("gt", "ge", "lt", "le", "min_length", "max_length")
    return [getattr(of, name) for of in unpacked for name in names if getattr(of, name, None) is not None]


def _written(number: float) -> str:
    return {-(2**63): "-2^63", 2**64: "2^64"}.get(int(number), f"{number:,}")


@pytest.mark.parametrize("route", TABLES)
def test_a_note_has_all_bounds_of_its_field(route: str) -> None:
    notes = {field.name: field.note for field in TABLES[route]}
    for name, numbers in bounds(BODIES[route]).items():
        said = set(re.findall(r"-?\d+\^\d+|-?\d[\d,]*\d|-?\d", notes[name]))
        assert numbers <= said, f"{name}: {notes[name]!r} lacks {numbers - said}"


def test_bounds_are_found_wherever_they_are() -> None:
    chat, messages = bounds(BODIES["POST /v1/chat/completions"]), bounds(BODIES["POST /v1/messages"])
    assert chat["logit_bias"] == {"1,024"}
    assert chat["seed"] == {"-2^63", "2^64"}
    assert messages["thinking"] == {"1"}
    assert bounds(BODIES["POST /v1/responses"])["input"] == {"20,000"}


def test_the_page_has_the_other_bounds() -> None:
    flowing = " ".join(PAGE.split())
    body = f"{MOST_BYTES:,} bytes, {MOST_BRACKETS:,} opening brackets and {MOST_DEPTH} levels"
    assert f"A body may have at most {body}" in flowing
    assert f"expression or grammar has up to {_size(MOST_FORM_BYTES)}," in flowing
    assert f"newest {MOST_RESPONSES:,} responses, {_size(MOST_STORED_BYTES)} at most" in flowing


def _size(num_bytes: int) -> str:
    return size(num_bytes).replace(".0 ", " ")


def test_the_page_shows_what_effort_means() -> None:
    for effort, tokens in REASONING_TOKENS.items():
        assert f"| `{effort}` | {'no bound' if tokens is None else f'{tokens:,}'} |" in PAGE


def test_the_page_shows_how_answers_end() -> None:
    for reason, openai in FINISH_REASONS.items():
        if reason not in ("form", "lost"):
            assert f"| `{reason}` | `{openai}` | `{STOP_REASONS[reason]}` |" in PAGE


@pytest.mark.parametrize("route", TABLES)
def test_a_field_is_in_its_table_once(route: str) -> None:
    names = [field.name for field in TABLES[route]]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("route", TABLES)
def test_fields_that_work_are_those_that_the_request_has(route: str) -> None:
    works = {field.name for field in TABLES[route] if field.treatment == "works"}
    assert works == set(BODIES[route].model_fields)


@pytest.mark.parametrize("route", TABLES)
def test_a_table_has_every_field_that_the_apis_own_client_can_send(route: str) -> None:
    known = {name for params in of_clients()[route] for name in params.__annotations__}
    assert known > {"model"}
    assert known - {field.name for field in TABLES[route]} == set()


@pytest.mark.parametrize(("route", "field"), FIELDS, ids=NAMES)
def test_a_field_is_treated_as_its_table_says(route: str, field: Field) -> None:
    table = TABLES[route]
    value: Any = {"any": ["thing"]}
    assert wanted({field.name: None}, table) == {}
    if field.treatment == "works":
        assert wanted({field.name: value}, table) == {field.name: value}
    elif field.treatment == "ignored":
        assert wanted({field.name: value}, table) == {}
        assert field.note
    else:
        for passes in field.but:
            assert wanted({field.name: passes}, table) == {}
        with pytest.raises(ApiError, match="is not supported") as caught:
            wanted({field.name: value}, table)
        assert caught.value.param == field.name
        assert field.note in caught.value.message


@pytest.mark.parametrize("route", TABLES)
def test_a_mistyped_field_is_refused_with_advice(route: str) -> None:
    with pytest.raises(ApiError, match="no such field, did you mean model"):
        wanted({"modell": "m"}, TABLES[route])
    with pytest.raises(ApiError) as caught:
        wanted({"x" * 10_000: 1}, TABLES[route])
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    ("route", "name", "meant"),
    [
        ("POST /v1/messages", "stop", "stop_sequences"),
        ("POST /v1/messages", "reasoning_effort", "thinking"),
        ("POST /v1/messages", "max_completion_tokens", "max_tokens"),
        ("POST /v1/responses", "messages", "input"),
        ("POST /v1/responses", "max_tokens", "max_output_tokens"),
        ("POST /v1/responses", "response_format", "text"),
        ("POST /v1/completions", "messages", "prompt"),
        ("POST /v1/chat/completions", "input", "messages"),
    ],
)
def test_a_field_of_another_api_is_told_by_its_name_in_this_one(route: str, name: str, meant: str) -> None:
    with pytest.raises(ApiError) as caught:
        wanted({name: 1}, TABLES[route])
    assert caught.value.message.endswith(f"did you mean {meant}?")


def test_false_is_not_nought() -> None:
    with pytest.raises(ApiError):
        wanted({"echo": 0}, TABLES["POST /v1/completions"])
    with pytest.raises(ApiError):
        wanted({"best_of": True}, TABLES["POST /v1/completions"])
