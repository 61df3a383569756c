"""What a thread does whose loop fails: it takes the process along, so that no half of a worker lives on."""

from __future__ import annotations

import logging
import os
import traceback

log = logging.getLogger(__name__)

EXIT_CODE = 70
"""Of a process whose loop failed: an internal error."""


def end_process(what: str, error: BaseException) -> None:
    """Leave at once, with one line in the log."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    log.critical("%s: ends this process: %s: %s%s", what, type(error).__name__, error, where)
    logging.shutdown()
    os._exit(EXIT_CODE)
