"""Reads the YAML files people write, checked field by field, or says in one line what is wrong where.

A few lines of YAML can stand for gigabytes, since an alias repeats what its anchor holds. So values are
counted with aliases written out, and nesting too, before anything is built.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from difflib import get_close_matches
from typing import TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from placement.errors import PotluckError
from placement.files.input_file import read_text
from placement.files.quote import one_line, quote

Model = TypeVar("Model", bound=BaseModel)

# libyaml where PyYAML was built with it: ten times as fast.
_Loader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MOST_BYTES = 1_000_000
_MOST_VALUES = 100_000
_MOST_DEPTH = 64
_MOST_TEXT = 65_536
_MERGE, _DEFAULT_VALUE = "tag:yaml.org,2002:merge", "tag:yaml.org,2002:value"

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
    text = read_text(path, error, f"a YAML file with {keys}", most_bytes=_MOST_BYTES)
    try:
        _check_bounds(text)
        document = _build(text)
    except _Refused as found:
        raise error(f"{path}: {found}") from None
    except yaml.MarkedYAMLError as found:
        mark = found.problem_mark or found.context_mark
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise error(f"{path}: not YAML: {one_line(found.problem or found.context or '')}{line}") from found
    # ValueError: a value such as the date 2026-13-01.
    except (yaml.YAMLError, ValueError) as found:
        raise error(f"{path}: not YAML: {one_line(str(found))}") from found
    if not isinstance(document, dict):
        what = "nothing" if document is None else quote(document)
        raise error(f"{path}: expected a mapping with {keys}, found {what}")
    return document


def validate_fields(
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
        # A key that is unknown first: it is the one that is missing, misspelt.
        mistakes = found.errors(include_url=False)
        first = next((one for one in mistakes if one["type"] == "extra_forbidden"), mistakes[0])
        fields = "".join(
            f"[{part}]" if isinstance(part, int) else f".{one_line(part)}" for part in first["loc"]
        )
        raise error(f"{path}: {(prefix + fields).lstrip('.')}: {_reason(first, model)}") from found


class _Refused(Exception):
    """YAML, but not of a kind that anybody writes; says what and in which line."""


def _check_bounds(text: str) -> None:
    """Raise _Refused for more depth or values than a person writes, aliases written out."""
    sizes: dict[str, int] = {}
    # Of each collection that is open: its anchor and its values so far.
    open_ones: list[tuple[str | None, int]] = [(None, 0)]
    for event in yaml.parse(text, Loader=_Loader):
        line = event.start_mark.line + 1 if event.start_mark is not None else 1
        match event:
            case yaml.CollectionStartEvent():
                if len(open_ones) > _MOST_DEPTH:
                    raise _Refused(f"line {line}: nested more than {_MOST_DEPTH} deep")
                open_ones.append((event.anchor, 1))
                # Until it ends: an alias inside of it would repeat it for ever.
                sizes[event.anchor or ""] = _MOST_VALUES
                continue
            case yaml.CollectionEndEvent():
                anchor, count = open_ones.pop()
            case yaml.ScalarEvent():
                if len(event.value) > _MOST_TEXT:
                    raise _Refused(f"line {line}: a text of more than {_MOST_TEXT:,} characters")
                anchor, count = event.anchor, 1
            case yaml.AliasEvent():
                # One that is not known is the parser's to refuse.
                anchor, count = None, sizes.get(event.anchor or "", 1)
            case _:
                continue
        if anchor is not None:
            sizes[anchor] = count
        outer, so_far = open_ones[-1]
        if so_far + count > _MOST_VALUES:
            raise _Refused(f"line {line}: more than {_MOST_VALUES:,} values, with what aliases (*) repeat")
        open_ones[-1] = (outer, so_far + count)


def _build(text: str) -> object:
    """The document; raises _Refused for a key that is given twice in a mapping, where YAML keeps the last."""
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        waiting, seen = [root], set()
        while waiting:
            node = waiting.pop()
            if id(node) in seen:
                continue
            if isinstance(node, yaml.ScalarNode):
                _check_value(loader, node)
                continue
            seen.add(id(node))
            if isinstance(node, yaml.MappingNode):
                _check_keys(node)
                waiting += [part for pair in node.value for part in pair]
            else:
                waiting += node.value
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _check_value(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> None:
    """Raise _Refused for a value that is not what its tag says; the library lets any error escape."""
    if node.tag in (_MERGE, _DEFAULT_VALUE):
        return
    try:
        loader.construct_object(node)
    except Exception as found:
        line, kind = node.start_mark.line + 1, one_line(node.tag.rpartition(":")[2])
        raise _Refused(f"line {line}: {quote(node.value)} is no {kind}") from found


def _check_keys(mapping: yaml.MappingNode) -> None:
    lines: dict[Hashable, int] = {}
    for key, _ in mapping.value:
        # Several merges (<<) lose nothing: each adds its keys.
        if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
            continue
        line = key.start_mark.line + 1
        name = (key.tag, key.value)
        if (first := lines.get(name)) is not None:
            raise _Refused(
                f"line {line}: key {quote(key.value)} again, first given in line {first}: keep one"
            )
        lines[name] = line


def _reason(mistake: ErrorDetails, model: type[BaseModel]) -> str:
    kind, location, found = mistake["type"], mistake["loc"], quote(mistake["input"])
    if kind == "missing":
        return "expected a value, found nothing"
    if kind == "value_error":
        return str(mistake["ctx"]["error"])
    if kind == "extra_forbidden":
        known = list(_model_at(model, location[:-1]).model_fields)
        near = get_close_matches(str(location[-1]), known, 1)
        return f"unknown key{f' (is {near[0]} meant?)' if near else ''}; expected {', '.join(known)}"
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
