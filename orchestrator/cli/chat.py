"""`potluck chat`: a conversation with a model that a server serves."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.chat.address import read_url
from orchestrator.chat.connection import Server
from orchestrator.chat.figures import summary
from orchestrator.chat.session import Session, Wishes
from orchestrator.cli.chat_lines import piped_lines, typed_lines
from orchestrator.cli.chat_loop import converse
from orchestrator.cli.chat_screen import Screen
from orchestrator.cli.options import Json
from orchestrator.cli.output import print_json, print_note
from orchestrator.cluster.private_files import read_private
from placement.errors import KeyFilesError


def chat(
    url: Annotated[str, typer.Option(help="Of the server.", metavar="URL")] = "http://127.0.0.1:8000",
    key_file: Annotated[
        Path | None,
        typer.Option(help="File with your key alone in it, where the server wants one.", metavar="FILE"),
    ] = None,
    system: Annotated[str | None, typer.Option(help="System text before the conversation.")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, max=2, help="0 is greedy. Default: the server's.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(min=0, max=1, help="Choose among the likeliest of this joint probability.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(min=0, help="Choose among so many likeliest; 0: all.")] = None,
    min_p: Annotated[
        float | None, typer.Option(min=0, max=1, help="Leave out those below this share of the likeliest.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same words, same answer.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="End answers after so many, reasoning included.")
    ] = None,
    reasoning_tokens: Annotated[
        int | None, typer.Option(min=0, help="End reasoning after so many; 0: answer at once.")
    ] = None,
    json: Json = False,
) -> None:
    """Talk to a model that `potluck serve` serves.

    Lines that begin with / are commands; /help lists them. Messages may also be piped in, one a line.
    """
    address = read_url(url)
    key = None if key_file is None else _key(key_file)
    if key is not None and address.is_open_to_listeners:
        print_note(f"{address}: without TLS, whoever listens on the network reads your key and the chat")
    wishes = Wishes(temperature, top_p, top_k, min_p, seed, max_tokens, reasoning_tokens)
    server = Server(address, key)
    session = Session(server.model(), wishes, system or None)
    is_terminal = not json and sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
    screen = Screen(sys.stdout, is_terminal, is_silent=json)
    if is_terminal:
        print_note(f"{session.model} at {address}; /help says what you can do, Ctrl-D ends")
        with _interruptions():
            converse(session, server, typed_lines(), screen)
        return
    session = converse(session, server, piped_lines(), screen)
    if json:
        print_json({**session.document(), "figures": asdict(summary(session.answers))})


def _key(path: Path) -> str:
    """Raises KeyFilesError where it cannot be read, others may read it, or it has no key."""
    content = read_private(path)
    if content is None:
        raise KeyFilesError(f"cannot read {path}: there is no such file")
    key = content.strip()
    # A header has room for neither white space nor what is no ASCII.
    if not key or any(not 0x21 <= byte < 0x7F for byte in key):
        raise KeyFilesError(f"{path}: expected one key alone, as `potluck keys add` prints it")
    return os.fsdecode(key)


@contextmanager
def _interruptions() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt: it stops an answer, or drops a line, and not the program."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
