"""`potluck top`: what a server is doing, once a second."""

from __future__ import annotations

import json as json_module
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live

from orchestrator.api.state_json import read_state
from orchestrator.cli.options import Json
from orchestrator.cli.output import console, print_json
from orchestrator.cli.server_state import fetch_state, server_address
from orchestrator.cli.top_view import frames, view
from orchestrator.serving.state import ServerState
from placement.errors import InputError

_EVERY_S = 1.0


def top(
    url: Annotated[
        str, typer.Option(help="Where the server listens. For https its certificate must be trusted here.")
    ] = "http://127.0.0.1:8000",
    key_file: Annotated[
        Path | None, typer.Option(help="A file with your key and no more, where the server wants one.")
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="Print it once and end, as without a terminal.")
    ] = False,
    json: Json = False,
) -> None:
    """Show what a server is doing, once a second: speed, boxes, requests, events."""
    server = server_address(url, key_file)

    def ask() -> tuple[bytes, ServerState]:
        content = fetch_state(server)
        try:
            return content, read_state(content)
        except ValueError as error:
            raise InputError(f"{server.url}: what it sent is not a server's state: {error}") from None

    if json:
        # Only once it has been read, since a script relies on its keys.
        print_json(json_module.loads(ask()[0]))
    elif once or not console.is_terminal:
        console.print(view(ask()[1], None))
    else:
        shown = frames(lambda: ask()[1])
        with Live(next(shown), console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.refresh()
                time.sleep(_EVERY_S)
                live.update(next(shown))
