"""What commands print: one JSON document or tables on standard output, everything else on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

errors = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
console = Console(highlight=False, emoji=False)


def print_error(message: str) -> None:
    """One line for a user's mistake, whatever the names and values in it contain."""
    errors.print(f"[bold red]error:[/] {_plain(' '.join(message.splitlines()))}")


def print_note(message: str) -> None:
    """Progress or advice; never mixed into results."""
    errors.print(f"[dim]{_plain(message)}[/]")


def once(say: Callable[[str], None]) -> Callable[[str], None]:
    """`say`, but for what it has said already."""
    said: set[str] = set()

    def say_once(message: str) -> None:
        if message not in said:
            said.add(message)
            say(message)

    return say_once


def print_json(document: Mapping[str, Any]) -> None:
    """The command's one document."""
    json.dump(document, sys.stdout, indent=2)
    sys.stdout.write("\n")
    sys.stdout.flush()


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Group:
    """First column text, the others numbers; narrow enough for a terminal of 60 columns."""
    has_header = any(columns)
    result = Table(
        box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, show_header=has_header
    )
    for index, column in enumerate(columns):
        result.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        result.add_row(*[_plain(cell) for cell in row])
    # Above the table and not as its title, which would be broken at the table's width.
    return Group(Text(title, style="bold"), result, "")


def share(part: float) -> str:
    return f"{100 * part:.1f}%"


def age(seconds: float) -> str:
    """How long something has lasted: "90 s", "12 min", "5 h"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def visible(text: str) -> str:
    """Text from files, users and peers without what moves the cursor or colours the screen."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def _plain(text: str) -> str:
    """The same where the console would read markup."""
    return visible(text).replace("[", r"\[")
