"""The id under which a client and the log speak of one request."""

from __future__ import annotations

import secrets
from contextvars import ContextVar

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="none")
"""Of the request that the running task works for; set by the guard."""


def new_request_id() -> str:
    """Nobody can guess it."""
    return f"req_{secrets.token_hex(12)}"
