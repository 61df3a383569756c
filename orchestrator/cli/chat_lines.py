"""The lines that somebody types or pipes into a chat."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import suppress

from orchestrator.cli.output import print_error, print_note
from placement.errors import InputError
from placement.files.input_file import decode_text
from placement.units import size

PROMPT = "> "
# As much as a server takes.
_MOST_LINE_BYTES = 10_000_000


def typed_lines() -> Iterator[str]:
    """What somebody types, until the end of input. Ctrl-C drops the line."""
    with suppress(ImportError):
        # `input` then lets lines be edited, and finds earlier ones.
        importlib.import_module("readline")
    while True:
        try:
            yield input(PROMPT)
        except EOFError:
            sys.stdout.write("\n")
            return
        except KeyboardInterrupt:
            sys.stdout.write("\n")
            print_note("/quit ends, as does Ctrl-D")
        except UnicodeDecodeError:
            print_error("standard input: not UTF-8 text; expected a message")


def piped_lines() -> Iterator[str]:
    """The lines of standard input.

    Raises:
        InputError: it is closed, or a line is too long or no UTF-8.
    """
    if sys.stdin is None:
        raise InputError("standard input is closed: expected messages, one a line")
    number = 0
    while line := sys.stdin.buffer.readline(_MOST_LINE_BYTES + 1):
        number += 1
        where = f"standard input, line {number}"
        if len(line) > _MOST_LINE_BYTES:
            raise InputError(f"{where}: more than {size(_MOST_LINE_BYTES)}; expected a message")
        yield decode_text(line, InputError, where, "a message")
