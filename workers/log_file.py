"""A process's log: one file of bounded size, and the one before it."""

from __future__ import annotations

import logging
import os
import sys
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import cast

from placement.files.quote import last_line

MOST_BYTES = 1_000_000


class _LogFile(RotatingFileHandler):
    """Standard error goes where the messages go, also what libraries and the interpreter write there."""

    def _open(self) -> TextIOWrapper:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(descriptor, 2)
        return cast(TextIOWrapper, open(descriptor, self.mode, encoding=self.encoding))


def log_to(path: str) -> None:
    """From now on, messages and standard error go to the end of this file, readable by its owner alone.

    When it has a megabyte, it becomes `path`.1 and a new one begins. Where it cannot be written, standard
    error stays as it is.
    """
    try:
        handler: logging.Handler = _LogFile(path, maxBytes=MOST_BYTES, backupCount=1, encoding="utf-8")
    except OSError as error:
        print(f"{path}: {error.strerror}: messages go to standard error", file=sys.stderr)
        handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)


def last_of_log(path: str | Path) -> str:
    """The end of a log, which often says why its process died; nothing where there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            return last_line(file.read().decode(errors="replace"))
    except OSError:
        return ""
