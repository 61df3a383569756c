"""Reads the YAML files people write, checked field by field, or says in one line what is wrong where."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from placement.errors import PotluckError
from placement.shown import shown

Model = TypeVar("Model", bound=BaseModel)

# What pydantic calls these mistakes, in a user's words.
_EXPECTED = {
    "list_type": "a list",
    "string_type": "text",
    "string_pattern_mismatch": "letters, digits, '-', '_' and '.'",
    "string_too_long": "a shorter text",
    "string_too_short": "a longer text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
}


def read_mapping(path: str | os.PathLike[str], error: type[PotluckError], keys: str) -> dict[object, object]:
    """The mapping in a YAML file; what its keys and values must be is the caller's to check.

    Args:
        error: what is raised.
        keys: what the mapping should have, such as "head, nodes and links".

    Raises:
        error: the file cannot be read, is not YAML, or holds something else; names it.
    """
    try:
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as found:
        raise error(f"{path}: {found.strerror}; expected a YAML file with {keys}") from found
    # ValueError: bytes that are not UTF-8, or a value such as the date 2026-13-01. RecursionError: brackets.
    except (yaml.YAMLError, ValueError, RecursionError) as found:
        raise error(f"{path}: not YAML: {' '.join(str(found).split())}") from found
    if not isinstance(document, dict):
        raise error(f"{path}: expected a mapping with {keys}, found {shown(document)}")
    return document


def checked(
    document: object, model: type[Model], path: object, error: type[PotluckError], prefix: str = ""
) -> Model:
    """What a file says, as `model`.

    Args:
        prefix: the keys that lead to `document` in the file, such as "metadata.potluck".

    Raises:
        error: names the file, the field, what was expected and what was found.
    """
    try:
        return model.model_validate(document)
    except ValidationError as found:
        first = found.errors(include_url=False)[0]
        fields = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
        raise error(f"{path}: {(prefix + fields).lstrip('.')}: {_reason(first, model)}") from found


def _reason(mistake: ErrorDetails, model: type[BaseModel]) -> str:
    kind, location, found = mistake["type"], mistake["loc"], shown(mistake["input"])
    if kind == "missing":
        return "expected a value, found nothing"
    if kind == "value_error":
        return str(mistake["ctx"]["error"])
    if kind == "extra_forbidden":
        return f"unknown key; expected {', '.join(_model_at(model, location[:-1]).model_fields)}"
    if kind in ("model_type", "model_attributes_type"):
        keys = ", ".join(_model_at(model, location).model_fields)
        return f"expected a mapping with {keys}, found {found}"
    expected = _EXPECTED.get(kind, mistake["msg"].removeprefix("Input should be "))
    return f"expected {expected}, found {found}"


def _model_at(model: type[BaseModel], location: Sequence[int | str]) -> type[BaseModel]:
    """The model of the mapping that stands at `location` in a document of `model`."""
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            model = _model_in(model.model_fields[part].annotation) or model
    return model


def _model_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)
