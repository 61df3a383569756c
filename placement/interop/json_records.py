"""JSON files of one object, a list of objects, or one object a line: one line in memory at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from placement.errors import RoutingFileError
from placement.files.input_file import decode_text, open_input, read_text
from placement.files.json_file import expect_object, parse_json
from placement.files.quote import quote
from placement.units import size

_EXPECTED = "JSON objects (docs/interop.md)"
# Of a line, and of a file that is one value: a response with every expert of 100,000 tokens takes 200 MB.
_MOST_BYTES = 2**28
# vLLM 0.21 sends numbers instead of base64: 27,000 tokens of Step-3.5-Flash.
_MOST_VALUES = 10_000_000
_MOST_DIMENSIONS = 4


def read_json_records(path: str | os.PathLike[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file in order, each with words that say where it stands.

    Raises:
        RoutingFileError: unreadable, empty, larger than any such file, not JSON, or something else than
            objects; while they are read.
    """
    number = 0
    for number, (where, value) in enumerate(_values(path), start=1):  # noqa: B007
        yield where, expect_object(value, RoutingFileError, where)
    if not number:
        raise RoutingFileError(f"{path}: expected {_EXPECTED}, found none")


def number_array(value: object, where: str) -> NDArray[Any]:
    """Nested lists of numbers, all of one length at each depth, as an array.

    Raises:
        RoutingFileError: anything else, or whole numbers of more than 64 bits.
    """
    shape: list[int] = []
    level: Any = value
    while isinstance(level, list) and len(shape) < _MOST_DIMENSIONS:
        shape.append(len(level))
        level = level[0] if level else None
    # numpy makes room for the longest text or object it finds, so nothing but numbers may reach it.
    if not shape or not _is_filled(value, shape):
        raise RoutingFileError(f"{where}: expected rows of one length with numbers, found {quote(value)}")
    try:
        array: NDArray[Any] = np.array(value)
    except (ValueError, OverflowError) as error:
        raise RoutingFileError(f"{where}: expected rows of one length with numbers: {error}") from error
    if array.dtype.kind not in "iuf":
        raise RoutingFileError(f"{where}: expected numbers, found {array.dtype}")
    return array


def _is_filled(value: object, shape: list[int]) -> bool:
    if not isinstance(value, list) or len(value) != shape[0]:
        return False
    if len(shape) == 1:
        return all(type(number) in (int, float) for number in value)
    return all(_is_filled(part, shape[1:]) for part in value)


def _values(path: str | os.PathLike[str]) -> Iterator[tuple[str, Any]]:
    if not _has_one_a_line(path):
        text = read_text(path, RoutingFileError, _EXPECTED, most_bytes=_MOST_BYTES)
        if text.strip():
            value = _parse(text, str(path))
            if isinstance(value, list):
                yield from ((f"{path}: item {index}", item) for index, item in enumerate(value))
            else:
                yield str(path), value
        return
    with open_input(path, RoutingFileError, _EXPECTED) as file:
        number = 0
        while line := file.readline(_MOST_BYTES + 1):
            number += 1
            where = f"{path}:{number}"
            if len(line) > _MOST_BYTES:
                raise RoutingFileError(f"{where}: longer than {size(_MOST_BYTES)}; expected {_EXPECTED}")
            if line.strip():
                yield where, _parse(decode_text(line, RoutingFileError, where, _EXPECTED), where)


def _has_one_a_line(path: str | os.PathLike[str]) -> bool:
    """Several lines that each end an object are JSON Lines, whatever the file is called."""
    with open_input(path, RoutingFileError, _EXPECTED) as file:
        first, num_bytes = b"", 0
        while line := file.readline(_MOST_BYTES):
            num_bytes += len(line)
            if line.strip():
                if first:
                    return True
                if not (line.lstrip(b"\xef\xbb\xbf \t").startswith(b"{") and line.rstrip().endswith(b"}")):
                    return False
                first = line[:1]
            elif num_bytes > _MOST_BYTES:
                return False
    return False


def _parse(text: str, where: str) -> Any:
    return parse_json(text, RoutingFileError, where, _EXPECTED, most_values=_MOST_VALUES)
