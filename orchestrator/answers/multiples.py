"""Multiples that schemas ask for, whose work and memory grow with the number itself."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from placement.errors import InputError

MOST_MULTIPLE = 10_000
"""Of all `multipleOf` in a form together, without the zeros around their digits."""

# A form is a schema from its start on, or has some within its grammar.
_BEGINS = re.compile(r"(?:\A|%json)\s*(?=\{)")


def check_multiples(form: str, what: str) -> None:
    """Raises InputError where the schemas of a form ask for multiples of numbers that are too great.

    Args:
        form: a schema as JSON, or a grammar.
        what: the form's name, for the error.
    """
    decoder = json.JSONDecoder(parse_float=Decimal)
    total = 0
    for begin in _BEGINS.finditer(form):
        try:
            schema, _ = decoder.raw_decode(form, begin.end())
        except (ValueError, RecursionError):
            # Whoever compiles it says what is wrong.
            continue
        total += sum(map(_digits, _multiples(schema)))
    if total > MOST_MULTIPLE:
        raise InputError(
            f"{what} asks for multiples of {total:,}; "
            f"expected at most {MOST_MULTIPLE:,} of all `multipleOf` together"
        )


def _multiples(schema: Any) -> Iterable[int | Decimal]:
    waiting = [schema]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            waiting += one
        elif isinstance(one, dict):
            waiting += one.values()
            multiple = one.get("multipleOf")
            if isinstance(multiple, int | Decimal) and not isinstance(multiple, bool):
                yield multiple


def _digits(number: int | Decimal) -> int:
    """Its digits as a whole number: 25 of 0.25, 3 of 3000."""
    digits = "".join(map(str, Decimal(number).as_tuple().digits)).strip("0")
    return int(digits or 0) if len(digits) < 12 else 10**12
