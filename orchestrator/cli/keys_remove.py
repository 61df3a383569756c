"""`potluck keys remove`: a client's key is taken away."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.api.key_file import change_keys, without_key
from orchestrator.cli.keys_file import check_keys_file
from orchestrator.cli.options import Json, KeyFile
from orchestrator.cli.output import print_json, print_note
from placement.errors import KeyFilesError


def keys_remove(
    file: KeyFile,
    name: Annotated[str, typer.Argument(help="Whose key it is.", metavar="NAME")],
    json: Json = False,
) -> None:
    """Take a client's key away."""
    check_keys_file(file)
    if not file.exists() and not file.is_symlink():
        raise KeyFilesError(f"cannot read {file}: there is no such file")
    change_keys(file, lambda keys: without_key(keys, name))
    if json:
        print_json({"removed": name})
    else:
        print_note(f"{name}'s key is gone; a server that runs already knows it until it is started again")
