"""Writes what was set and judged into files of placement/hardware; all else in them stays."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from placement.errors import InputError
from placement.files.atomic import replacing
from placement.files.quote import quote

_DIGITS = 3


def write_values(path: Path, values: Mapping[str, Mapping[str, float]]) -> None:
    """Replace values of a file that is there: by its key, such as a class, and by figure.

    Raises:
        InputError: the file has no line for one of them.
    """
    text = with_values(path.read_text(encoding="utf-8"), values, path)
    with replacing(path) as file:
        file.write(text.encode())


def with_values(text: str, values: Mapping[str, Mapping[str, float]], where: object) -> str:
    """The same of a file's text; sources and comments keep their places."""
    missing = {(key, name) for key, figures in values.items() for name in figures}
    lines, key = [], ""
    for line in text.splitlines(keepends=True):
        if found := re.match(r"([a-z0-9_-]+):", line):
            key = found[1]
        if found := re.match(r"(  (\w+): )[-+.\de]+(?=\s)", line):
            name = found[2]
            if (key, name) in missing:
                line = f"{found[1]}{shown(values[key][name])}{line[found.end() :]}"
                missing.discard((key, name))
        lines.append(line)
    if missing:
        key, name = sorted(missing)[0]
        raise InputError(f"{where}: expected a line for {quote(name)} under {quote(key)}: write one first")
    return "".join(lines)


def shown(value: float) -> str:
    """With as many digits as such a figure can have, and never as 1e-05, which YAML takes for text."""
    if value == int(value):
        return str(int(value))
    rounded = float(f"{value:.{_DIGITS}g}")
    return f"{rounded:.10f}".rstrip("0").rstrip(".")
