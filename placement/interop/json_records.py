"""JSON files of one object, a list of objects, or one object a line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from placement.errors import RoutingFileError


def read_json_records(path: str | os.PathLike[str]) -> list[tuple[str, dict[str, Any]]]:
    """The objects of a file, each with words that say where it stands.

    Raises:
        RoutingFileError: unreadable, empty, not JSON, or something else than objects.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise RoutingFileError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RoutingFileError(f"{path}: not text: {error}") from error
    records = _whole(text, path) if _is_one_value(text) else _by_line(text, path)
    if not records:
        raise RoutingFileError(f"{path}: expected JSON objects, found none")
    for where, record in records:
        if not isinstance(record, dict):
            raise RoutingFileError(f"{where}: expected a JSON object, found {type(record).__name__}")
    return records


def _is_one_value(text: str) -> bool:
    """Several lines that each end an object are JSON Lines, whatever the file is called."""
    lines = [line for line in text.splitlines() if line.strip()]
    return len(lines) < 2 or not (lines[0].lstrip().startswith("{") and lines[0].rstrip().endswith("}"))


def _whole(text: str, path: object) -> list[tuple[str, Any]]:
    if not text.strip():
        return []
    value = _parse(text, str(path))
    if isinstance(value, list):
        return [(f"{path}: item {index}", item) for index, item in enumerate(value)]
    return [(str(path), value)]


def _by_line(text: str, path: object) -> list[tuple[str, Any]]:
    return [
        (f"{path}:{number}", _parse(line, f"{path}:{number}"))
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip()
    ]


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RoutingFileError(f"{where}: not JSON: {error}") from error
