"""The log as lines of JSON, one for each record."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import TextIO

from orchestrator.api.request_id import REQUEST_ID


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


def log_to(stream: TextIO) -> logging.Handler:
    """Write what our own code logs to a stream from now on; the handler, for who wants to end that."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    ours = logging.getLogger("orchestrator")
    ours.setLevel(logging.INFO)
    ours.addHandler(handler)
    return handler
