"""The log as lines of JSON, one for each record."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TextIO

from orchestrator.api.request_id import REQUEST_ID

_LOGGERS = {"orchestrator": logging.INFO, "uvicorn.error": logging.WARNING}
"""Ours, and that of the library that listens."""


class JsonLines(logging.Formatter):
    """`fields` of a record, given with `extra`, become keys of its line."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the record contains."""
        line: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        # The guard sets it for each request, and no request runs in a task of another.
        if (request_id := REQUEST_ID.get(None)) is not None:
            line["request_id"] = request_id
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


@contextmanager
def logging_to(stream: TextIO) -> Iterator[None]:
    """Write what our own code and the HTTP library log to a stream, for a block."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    handler.addFilter(_is_news)
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    for logger in loggers:
        logger.setLevel(_LOGGERS[logger.name])
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


def _is_news(record: logging.LogRecord) -> bool:
    """Not what `connections` says better, nor that an answer was cut off by a server that ends."""
    was_cut = record.exc_info is not None and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not was_cut and record.msg != "Invalid HTTP request received."
