"""A process's log: one file of bounded size, and the one before it."""

from __future__ import annotations

import logging
import os
import sys
from logging.handlers import RotatingFileHandler

MOST_BYTES = 1_000_000


class _LogFile(RotatingFileHandler):
    """Standard error goes where the messages go, also what libraries and the interpreter write there."""

    def _open(self):  # type: ignore[no-untyped-def]
        stream = super()._open()
        os.dup2(stream.fileno(), 2)
        return stream


def log_to(path: str) -> None:
    """From now on, messages and standard error go to the end of this file, readable by its owner alone.

    When it has a megabyte, it becomes `path`.1 and a new one begins. Where it cannot be written, standard
    error stays as it is.
    """
    before = os.umask(0o077)
    try:
        handler: logging.Handler = _LogFile(path, maxBytes=MOST_BYTES, backupCount=1, encoding="utf-8")
    except OSError as error:
        print(f"{path}: {error.strerror}: messages go to standard error", file=sys.stderr)
        handler = logging.StreamHandler()
    finally:
        os.umask(before)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
