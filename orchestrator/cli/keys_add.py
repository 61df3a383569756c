"""`potluck keys add`: a new key for a client of a server."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from orchestrator.api.key_file import change_keys, with_key
from orchestrator.api.keys import make_key
from orchestrator.api.limits import Limits
from orchestrator.cli.keys_file import check_keys_file
from orchestrator.cli.options import Json, KeyFile
from orchestrator.cli.output import print_json, print_note


def keys_add(
    file: KeyFile,
    name: Annotated[str, typer.Argument(help="Whose key it is; logs show this name.", metavar="NAME")],
    requests_at_once: Annotated[
        int | None,
        typer.Option(min=1, max=1_000_000, help="No more of its requests run at once. Default: no bound."),
    ] = None,
    requests_per_minute: Annotated[
        int | None,
        typer.Option(min=1, max=1_000_000, help="No more of its requests in a minute. Default: no bound."),
    ] = None,
    json: Json = False,
) -> None:
    """Make a key for a client of `potluck serve`, and print it once."""
    check_keys_file(file)
    text, key = make_key(name, Limits(requests_at_once, requests_per_minute))
    change_keys(file, lambda keys: with_key(keys, key))
    if json:
        print_json({"name": name, "key": text})
        return
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
    print_note(
        f"{file} has only its hash, so that nobody can show the key again: give it to {name} now. A server "
        "that runs already takes it once it is started again"
    )
