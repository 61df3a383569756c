"""What a command line of `potluck` gives back."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

Potluck = Callable[..., tuple[int, str, str]]
"""Runs a command line: exit code, standard output, standard error."""


def says(err: str, expected: str) -> bool:
    """Whether one clear line has these parts in this order; " … " stands for any words between them."""
    pattern = ".*".join(map(re.escape, expected.split(" … ")))
    return len(err.strip().splitlines()) == 1 and re.search(pattern, err) is not None


def document(result: tuple[int, str, str]) -> dict[str, Any]:
    """The one JSON document of a command that succeeded."""
    code, out, err = result
    assert code == 0, err
    parsed: dict[str, Any] = json.loads(out)
    return parsed
