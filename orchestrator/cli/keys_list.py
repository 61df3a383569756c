"""`potluck keys list`: who has a key of a server."""

from __future__ import annotations

from orchestrator.api.keys import read_keys
from orchestrator.cli.keys_file import check_keys_file
from orchestrator.cli.options import Json, KeyFile
from orchestrator.cli.output import console, print_json, table


def keys_list(file: KeyFile, json: Json = False) -> None:
    """Say who has a key, and how much each may ask."""
    check_keys_file(file)
    keys = read_keys(file)
    if json:
        listed = [
            {
                "name": key.name,
                "requests_at_once": key.limits.running,
                "requests_per_minute": key.limits.per_minute,
            }
            for key in keys
        ]
        print_json({"keys": listed})
        return
    rows = [[key.name, _bound(key.limits.running), _bound(key.limits.per_minute)] for key in keys]
    console.print(table(f"{len(keys)} of {file}", ["name", "at once", "a minute"], rows))


def _bound(number: int | None) -> str:
    return "no bound" if number is None else f"{number:,}"
