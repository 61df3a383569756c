"""Reads a request's object into its model, and says in one line what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.api.errors import ApiError, invalid
from orchestrator.api.fields import MOST_BIASES, MOST_STOP_CHARACTERS, MOST_STOPS, wanted
from orchestrator.api.fields import Field as FieldOfTable

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class Part(BaseModel):
    """An object within a request. Fields that nobody reads, such as cache marks, may be in it."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)


class Extras(Part):
    """What every API takes beside its own fields."""

    model_config = ConfigDict(extra="forbid")

    temperature: float = Field(default=1.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0, le=1_000_000)
    min_p: float = Field(default=0.0, ge=0, le=1)
    repetition_penalty: float = Field(default=1.0, gt=0, le=10)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**64)
    ignore_eos: bool = False
    stream: bool = False


class Penalised(Extras):
    """What OpenAI's APIs take beside that."""

    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    logit_bias: dict[str, float] = Field(default_factory=dict, max_length=MOST_BIASES)
    stop: str | list[str] = Field(default_factory=list)


Body = TypeVar("Body", bound=BaseModel)


def validated(document: Mapping[str, Any], table: tuple[FieldOfTable, ...], model: type[Body]) -> Body:
    """A request, once its table has sorted out what is refused or ignored.

    Raises:
        ApiError: it names the field at fault.
    """
    found = wanted(document, table)
    try:
        return model.model_validate(found)
    except ValidationError as error:
        raise _first(error, found) from None


def stops(value: str | list[str], field: str) -> tuple[str, ...]:
    """Texts that end an answer.

    Raises:
        ApiError: there are too many, or one is empty or too long.
    """
    texts = (value,) if isinstance(value, str) else tuple(value)
    if len(texts) > MOST_STOPS:
        raise invalid(field, f"has {len(texts)} texts, expected at most {MOST_STOPS}")
    if any(not 0 < len(text) <= MOST_STOP_CHARACTERS for text in texts):
        raise invalid(field, f"expected texts of 1 to {MOST_STOP_CHARACTERS:,} characters")
    return texts


def _first(error: ValidationError, document: Mapping[str, Any]) -> ApiError:
    """Of all that is wrong, what lies deepest: there a value fitted best.

    Where a text would do as well, what is wrong with a list says more than that it is no text.
    """
    found = error.errors(include_url=False)
    worst = max(found, key=lambda one: (len(one["loc"]), one["type"] != "string_type"))
    steps, kind, context = worst["loc"], worst["type"], worst.get("ctx", {})
    tells_kind = str(context.get("discriminator", "")).strip("'")
    if kind.startswith("union_tag_") and tells_kind.isidentifier():
        # Which kind of object it is stands in a field of it.
        steps = (*steps, tells_kind)
    where = _path(steps, document, is_missing=kind in ("missing", "union_tag_not_found"))
    might_be_text = any(
        one["type"] == "string_type" and _path(one["loc"], document, is_missing=False) == where
        for one in found
    )
    return invalid(where[:200] or "the body", _said(kind, worst["msg"], context, might_be_text)[:500])


def _said(kind: str, message: str, context: Mapping[str, Any], might_be_text: bool) -> str:
    """What is wrong, without the words of the library that found it."""
    if kind == "union_tag_not_found":
        return "field required"
    if kind == "union_tag_invalid":
        return f"{str(context['tag'])[:100]!r} is not known, expected one of {context['expected_tags']}"
    if kind == "too_short":
        return f"expected at least {context['min_length']}, found {context['actual_length']}"
    if kind in ("dict_type", "model_type", "model_attributes_type", "dataclass_type"):
        return "input should be an object"
    if kind == "too_long":
        return f"expected at most {context['max_length']:,}"
    if kind == "list_type" and might_be_text:
        return "input should be a text or a list"
    return message[:1].lower() + message[1:]


def _path(steps: Sequence[int | str], document: Any, *, is_missing: bool) -> str:
    """Where in the document. Between its own names, `steps` has names of alternatives, which are ours."""
    path, value, is_told_apart = [], document, False
    for number, step in enumerate(steps):
        if isinstance(value, dict) and step == value.get("type") and not is_told_apart:
            # Alternatives are told apart by their `type`, which may be a field's name too.
            is_told_apart = True
            continue
        is_told_apart = False
        if isinstance(value, dict) and step in value:
            value = value[str(step)]
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
        elif not (is_missing and number == len(steps) - 1):
            continue
        path.append(str(step))
    return ".".join(path)
