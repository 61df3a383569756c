"""What a command line of `potluck` gives back."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

Potluck = Callable[..., tuple[int, str, str]]
"""Runs a command line: exit code, standard output, standard error."""


def document(result: tuple[int, str, str]) -> dict[str, Any]:
    """The one JSON document of a command that succeeded."""
    code, out, err = result
    assert code == 0, err
    parsed: dict[str, Any] = json.loads(out)
    return parsed
