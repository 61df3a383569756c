"""Fields of a plan file, each checked by itself; errors name the field, what was expected and found."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping
from typing import Any

from placement.errors import PlanError
from placement.files.quote import quote

MOST_CHARACTERS = 200
"""Of a name: they are printed in tables and messages."""


def object_of(
    value: object, where: str, names: tuple[str, ...], optional: tuple[str, ...] = ()
) -> Mapping[str, Any]:
    """A JSON object with all of `names`, perhaps some of `optional`, and nothing else."""
    prefix = f"{where}." if where else ""
    if not isinstance(value, dict):
        raise PlanError(f"{where}: expected an object with {', '.join(names)}, found {quote(value)}")
    for name in names:
        if name not in value:
            raise PlanError(f"{prefix}{name}: missing")
    for name in value:
        if name not in names and name not in optional:
            expected = ", ".join((*names, *optional))
            raise PlanError(f"{where or 'plan'}: unknown field {quote(name)}; expected {expected}")
    return value


def text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise PlanError(f"{where}: expected text, found {quote(value)}")
    if len(value) > MOST_CHARACTERS:
        raise PlanError(f"{where}: expected at most {MOST_CHARACTERS} characters, found {len(value)}")
    return value


def count(value: object, where: str, least: int = 0, most: int = 2**63 - 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise PlanError(f"{where}: expected a whole number of at least {least}, found {quote(value)}")
    if value > most:
        raise PlanError(f"{where}: expected a whole number of at most {most}, found a larger one")
    return value


def number(
    value: object,
    where: str,
    *,
    least: float = 0.0,
    most: float = sys.float_info.max,
    what: str = "a number",
) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
        upper = "" if most == sys.float_info.max else f" and at most {most:g}"
        raise PlanError(f"{where}: expected {what} of at least {least:g}{upper}, found {quote(value)}")
    return float(value)


def ascending(value: object, where: str) -> tuple[int, ...]:
    """A list of whole numbers, each larger than the one before."""
    if not isinstance(value, list):
        raise PlanError(f"{where}: expected a list of whole numbers, found {quote(value)}")
    numbers = tuple(count(item, where) for item in value)
    for before, after in itertools.pairwise(numbers):
        if after <= before:
            raise PlanError(f"{where}: expected ascending numbers, each once, found {after} after {before}")
    return numbers
