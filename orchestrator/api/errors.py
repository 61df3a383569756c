"""What goes wrong with a request, and the two shapes in which clients expect to hear it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from orchestrator.serving.answer import Refused

Shape = Literal["openai", "anthropic"]

# What a client waits where nobody knows how long a trouble lasts.
RETRY_AFTER_S = 5.0

_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}
_OPENAI_CODES = {
    401: "invalid_api_key",
    404: "not_found",
    429: "rate_limit_exceeded",
    503: "service_unavailable",
}


_INDEX = re.compile(r"\.([0-9]+)(?![^.])")


class ApiError(Exception):
    """An answer that is an error.

    Attributes:
        status: of HTTP, 400 to 503.
        param: the field at fault, as a path: `messages.0.content`.
        code: OpenAI's word for it, where a client may look for it.
        retry_after_s: when the same request may be sent again; None where that would not help.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s


def invalid(param: str, message: str) -> ApiError:
    """A field that cannot be taken."""
    return ApiError(400, f"{param}: {message}", param=param)


def unexpected() -> ApiError:
    """A failure of ours. The client is told no more; the log is."""
    return ApiError(500, "the server failed to answer this request; its log says why")


def lost(message: str) -> ApiError:
    """A cluster that cannot go on with an answer now."""
    return ApiError(
        503,
        f"{message or 'the cluster cannot compute now'}: send the same request again",
        code="cluster_lost",
        retry_after_s=RETRY_AFTER_S,
    )


def stopping() -> ApiError:
    """A server that takes no more requests."""
    return ApiError(503, "the server is shutting down", retry_after_s=RETRY_AFTER_S)


def refused(refusal: Refused, names: Mapping[str, str] = MappingProxyType({})) -> ApiError:
    """What the engine does not take, as HTTP says it.

    Args:
        names: what the API calls fields of `Refused`, where it does so otherwise.
    """
    if refusal.kind == "invalid":
        param = names.get(refusal.field, refusal.field.partition(".")[0])
        return ApiError(400, refusal.message, param=param or None)
    if refusal.kind == "too_long":
        return ApiError(400, refusal.message, param=names.get("prompt"), code="context_length_exceeded")
    after_s = RETRY_AFTER_S if refusal.retry_after_s is None else refusal.retry_after_s
    return ApiError(429 if refusal.kind == "busy" else 503, refusal.message, retry_after_s=after_s)


def body_of(error: ApiError, shape: Shape) -> dict[str, Any]:
    """The JSON of an error."""
    if shape == "anthropic":
        return {"type": "error", "error": {"type": _anthropic_type(error), "message": _anthropic_text(error)}}
    param, message = error.param, error.message
    if param is not None:
        # As OpenAI writes a path; Anthropic's have points alone.
        shown = _INDEX.sub(r"[\1]", param)
        if message.startswith(f"{param}: "):
            message = shown + message.removeprefix(param)
        param = shown
    return {
        "error": {
            "message": message,
            "type": openai_type(error),
            "param": param,
            "code": error.code or _OPENAI_CODES.get(error.status),
        }
    }


def headers_of(error: ApiError) -> dict[str, str]:
    """The headers that belong to an error."""
    if error.status == 401:
        return {"www-authenticate": "Bearer"}
    if error.retry_after_s is None:
        return {}
    return {"retry-after": str(max(1, math.ceil(error.retry_after_s)))}


def openai_type(error: ApiError) -> str:
    """OpenAI's `type` of an error."""
    if error.status == 429:
        return "rate_limit_error"
    return "server_error" if error.status >= 500 else "invalid_request_error"


def _anthropic_type(error: ApiError) -> str:
    return _ANTHROPIC_TYPES.get(error.status, "invalid_request_error")


def _anthropic_text(error: ApiError) -> str:
    # Clients shorten the conversation when they find these words.
    words = "prompt is too long"
    if error.code == "context_length_exceeded" and words not in error.message:
        return f"{words}: {error.message}"
    field = error.param
    # An error with a code, such as that of an unknown model, is no fault of a field's value.
    if field is None or error.code is not None or error.message.startswith((f"{field}:", f"{field} ")):
        return error.message
    # There is no other place for the field.
    return f"{field}: {error.message}"
