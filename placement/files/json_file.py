"""JSON that somebody gave us: bounded in size, depth and number of values before it is taken apart."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from typing import Any

from placement.errors import PotluckError
from placement.files.input_file import read_text
from placement.files.quote import quote

MOST_DEPTH = 64
"""No file of ours or of a model nests deeper than ten."""


def read_json(
    path: str | os.PathLike[str],
    error: type[PotluckError],
    expected: str,
    *,
    most_bytes: int,
    most_values: int = 1_000_000,
) -> Any:
    """The value in a JSON file.

    Args:
        error: what is raised.
        expected: what should be there, such as "a plan: `potluck plan` writes one".
        most_values: numbers, texts, lists and objects in all; each takes some fifty bytes of memory.

    Raises:
        error: the file cannot be read or is too large, or as `parse_json`; names it.
    """
    text = read_text(path, error, expected, most_bytes=most_bytes)
    return parse_json(text, error, str(path), expected, most_values=most_values)


def parse_json(
    text: str, error: type[PotluckError], where: str, expected: str, *, most_values: int = 1_000_000
) -> Any:
    """The value of a JSON text; `where` it stands is named in errors.

    Raises:
        error: it is no JSON, nests too deeply, has too many values, or an object has a key twice.
    """
    # Every value but the first follows a comma, a colon or an opening bracket. Those in texts count too: a
    # text with a million of them is not what is expected either.
    if sum(map(text.count, ",:[{")) > most_values:
        raise error(f"{where}: more than {most_values:,} values; expected {expected}")
    if text.count("[") + text.count("{") > MOST_DEPTH and _depth(text) > MOST_DEPTH:
        raise error(f"{where}: nested more than {MOST_DEPTH} deep; expected {expected}")
    try:
        return json.loads(text, object_pairs_hook=_object)
    except _GivenTwice as found:
        raise error(f"{where}: key {quote(found.key)} again in one object: keep one") from None
    except ValueError as found:
        raise error(f"{where}: not JSON: {found}; expected {expected}") from found
    except MemoryError:
        raise error(f"{where}: too large for this machine's memory; expected {expected}") from None


class _GivenTwice(Exception):
    """A key that an object has twice; JSON readers differ in which value they keep."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        counted = Counter(key for key, _ in pairs)
        raise _GivenTwice(next(key for key, times in counted.items() if times > 1))
    return values


# Not whole texts at once: re would take hundreds of bytes for each of their characters.
_MARKS = re.compile(r'\\.|["\[\]{}]', re.DOTALL)


def _depth(text: str) -> int:
    """How deep brackets nest, those inside of texts left out."""
    deepest = depth = 0
    is_text = False
    for mark in _MARKS.finditer(text):
        first = text[mark.start()]
        if first == '"':
            is_text = not is_text
        elif is_text:
            continue
        elif first in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif first in "]}":
            depth -= 1
    return deepest


def expect_object(value: object, error: type[PotluckError], where: str) -> dict[str, Any]:
    """`value` where it is a JSON object; raises `error`, which says what was found, for anything else."""
    if not isinstance(value, dict):
        raise error(f"{where}: expected a JSON object, found {quote(value)}")
    return value
