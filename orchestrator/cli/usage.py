"""Mistakes in the command line itself, as one line in the words of the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
from pydantic import ValidationError

# Base of what typer raises for them: click's class, or that of the copy of click inside newer versions.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]

# What pydantic, which newer versions of typer convert values with, calls these mistakes.
_EXPECTED = {
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number of fewer digits",
    "float_parsing": "a number",
    "greater_than_equal": "a number of at least {ge:g}",
    "less_than_equal": "a number of at most {le:g}",
}


def _what_was_meant(text: str, context: Any) -> str:
    """By an argument too many; `text`: typer's, which has them all in brackets."""
    options = [name for param in context.command.params for name in param.opts] if context is not None else []
    first = text.partition("(s) (")[2].removesuffix(")").split(" ")[0]
    if "--model" in options and first and Path(first).exists():
        return f"a model is given as --model {first}"
    return "text with spaces goes into quotes"


def usage_message(error: Exception, name: str = "") -> str:
    """One line: the option or argument, expected and found, or typer's own words and where help is.

    Args:
        name: the command's, for errors that do not know it: those of an option without its value, or of one
            that takes none.
    """
    text = error.format_message() if hasattr(error, "format_message") else str(error)
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else f"potluck {name}".rstrip()
    text = text.replace("Value error, ", "").replace(". Did you", "; did you").rstrip(".?")
    if "unexpected extra argument" in text:
        text += f": {_what_was_meant(text, context)}"
    if not isinstance(error, typer.BadParameter) or not text.startswith("Invalid value for "):
        return f"{command}: {text[:1].lower()}{text[1:]}; see `{command} --help`"
    option, _, reason = text.removeprefix("Invalid value for ").replace("'", "", 2).partition(": ")
    if isinstance(error.__cause__, ValidationError):
        first = error.__cause__.errors(include_url=False)[0]
        if first["type"] in _EXPECTED:
            expected = _EXPECTED[first["type"]].format(**first.get("ctx", {}))
            reason = f"expected {expected}, found {str(first['input'])!r}"
    return f"{option}: {reason}; see `{command} --help`"
