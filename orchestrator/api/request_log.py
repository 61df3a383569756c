"""One line of the log for each request, at its end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

from starlette.types import Scope

from orchestrator.serving.answer import (
    AnswerEvent,
    CallArguments,
    CallStarted,
    Finished,
    FinishReason,
    Reasoning,
    Started,
    Text,
    Usage,
)

logger = logging.getLogger(__name__)

_MOST_CHARACTERS = 200
_LEFT = 499
"""No status of HTTP's: the client left before it had an answer."""


@dataclass(slots=True)
class RequestNote:
    """What is known of a request so far.

    Attributes:
        clock: seconds that only grow.
        client: None as long as nobody knows who asks.
        status: of HTTP; None before anything was sent.
        started_s: when the first of its answers was taken in hand; `first_token_s`: when it had a token.
    """

    clock: Callable[[], float]
    began_s: float
    client: str | None = None
    status: int | None = None
    started_s: float | None = None
    first_token_s: float | None = None
    finished: list[FinishReason] = field(default_factory=list)
    usages: list[Usage] = field(default_factory=list)

    def take(self, event: AnswerEvent) -> None:
        """An event of one of its answers."""
        if isinstance(event, Started):
            self.started_s = self._first(self.started_s)
        elif isinstance(event, Reasoning | Text | CallStarted | CallArguments):
            self.first_token_s = self._first(self.first_token_s)
        elif isinstance(event, Finished):
            self.finished.append(event.reason)
            self.usages.append(event.usage)

    def _first(self, before_s: float | None) -> float:
        return self.clock() if before_s is None else before_s


NOTE: ContextVar[RequestNote | None] = ContextVar("note", default=None)
"""Of the request that the running task works for; set by the guard."""


def note_event(event: AnswerEvent) -> None:
    """Keep what the log says of it, where a guard set a note."""
    if (note := NOTE.get()) is not None:
        note.take(event)


def log_request(request_id: str, scope: Scope, note: RequestNote) -> None:
    """The line, but for those who watch: they ask each second and would fill the log."""
    status = _LEFT if note.status is None else note.status
    if status >= 400 or not is_watching(scope["path"]):
        fields = {"request_id": request_id, "route": _route(scope), "status": status, **_fields(note)}
        logger.info("request %s ended", request_id, extra={"fields": fields})


def is_watching(path: str) -> bool:
    """Whether a path only shows what the server does (see `watch_routes`)."""
    return path in ("/", "/health", "/metrics") or path.startswith("/api/")


def _route(scope: Scope) -> str:
    """With `{response_id}` in place of an id, which belongs to its client alone."""
    path = getattr(scope.get("route"), "path", scope["path"])
    return f"{scope['method']} {path}"[:_MOST_CHARACTERS]


def _fields(note: RequestNote) -> dict[str, object]:
    """Tokens are of all of its answers together."""
    usages = note.usages
    return {
        "client": note.client,
        "finish": list(note.finished),
        "prompt_tokens": sum(usage.prompt_tokens for usage in usages),
        "cached_tokens": sum(usage.cached_tokens for usage in usages),
        "completion_tokens": sum(usage.completion_tokens for usage in usages),
        "reasoning_tokens": sum(usage.reasoning_tokens for usage in usages),
        "drafted_tokens": sum(usage.drafted for usage in usages),
        "accepted_tokens": sum(usage.accepted for usage in usages),
        "started_s": _since(note, note.started_s),
        "first_token_s": _since(note, note.first_token_s),
        "seconds": _since(note, note.clock()),
    }


def _since(note: RequestNote, at_s: float | None) -> float | None:
    return None if at_s is None else round(at_s - note.began_s, 6)
