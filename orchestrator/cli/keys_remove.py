"""`potluck keys remove`: a client's key is taken away."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.api.key_file import change_keys, without_key
from orchestrator.cli.options import Json, KeyFile
from orchestrator.cli.output import print_json, print_note


def keys_remove(
    file: KeyFile,
    name: Annotated[str, typer.Argument(help="Whose key it is.", metavar="NAME")],
    json: Json = False,
) -> None:
    """Take a client's key away."""
    change_keys(file, lambda keys: without_key(keys, name))
    if json:
        print_json({"removed": name})
    else:
        print_note(f"{name}'s key is gone; a server that runs already knows it until it is started again")
