"""Reads the YAML files people write: a mapping, or one line that says what is there instead."""

from __future__ import annotations

import os
from pathlib import Path

import yaml

from placement.errors import PotluckError

_MOST_SHOWN = 80


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


def shown(value: object) -> str:
    """What was found, for a message: the start of it where it is long."""
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"
