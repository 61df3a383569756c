"""Whether a command line of `potluck` is one that the real command takes."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from orchestrator.cli.app import COMMANDS, command


def parse(words: Sequence[str]) -> None:
    """Raises what the command line would end with; the command is not run.

    Args:
        words: of a command that there is, without `potluck`.
    """
    two = " ".join(words[:2])
    name = two if two in COMMANDS else words[0]
    app = typer.Typer()
    app.command(name)(command(name))
    typer.main.get_command(app).make_context(name, list(words)[len(name.split()) :])
