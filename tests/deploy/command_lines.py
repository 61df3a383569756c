"""Whether a command line of `potluck` is one that the real command takes."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from orchestrator.cli.app import COMMANDS, command


def is_known(words: Sequence[str]) -> bool:
    """Whether there is a command of these words."""
    return _name(words) in COMMANDS


def parse(words: Sequence[str]) -> None:
    """Raises what the command line would end with; the command is not run.

    Args:
        words: of a command that there is, without `potluck`.
    """
    name = _name(words)
    app = typer.Typer()
    app.command(name)(command(name))
    typer.main.get_command(app).make_context(name, list(words)[len(name.split()) :])


def _name(words: Sequence[str]) -> str:
    two = " ".join(words[:2])
    return two if two in COMMANDS else words[0]
