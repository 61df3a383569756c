"""What commands print: one JSON document or tables on standard output, everything else on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

errors = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
console = Console(highlight=False, emoji=False)


def print_error(message: str) -> None:
    """One line for a user's mistake, whatever the names and values in it contain."""
    errors.print(f"[bold red]error:[/] {_plain(' '.join(message.splitlines()))}")


def print_note(message: str) -> None:
    """Progress or advice; never mixed into results."""
    errors.print(f"[dim]{_plain(message)}[/]")


def print_json(document: Mapping[str, Any]) -> None:
    """The command's one document."""
    json.dump(document, sys.stdout, indent=2)
    sys.stdout.write("\n")
    sys.stdout.flush()


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """First column text, the others numbers."""
    result = Table(title=title, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        result.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        result.add_row(*[_plain(cell) for cell in row])
    return result


def size(num_bytes: float) -> str:
    """Bytes for a reader, in powers of 1000 as memory is sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(num_bytes) < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.2f} TB"


def share(part: float) -> str:
    return f"{100 * part:.1f}%"


def _plain(text: str) -> str:
    """Text from files and users is not console markup."""
    return text.replace("[", r"\[")
