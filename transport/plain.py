"""Messages without a tensor: how each is packed into a header, and what each field of it must be."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgpack import packb

from transport.expert_block import pack_experts, unpack_experts
from transport.header import is_unsigned
from transport.messages import (
    MAX_TEXT_CHARS,
    WIRE_VERSION,
    Drop,
    ErrorCode,
    ErrorReply,
    Held,
    Hello,
    HelloReply,
    Hold,
    Ping,
    Pong,
    Reply,
    Request,
    Shutdown,
    WireError,
    WireLimits,
    WorkerState,
)

HELLO, HELLO_REPLY, PING, PONG, HOLD, DROP, HELD, SHUTDOWN, ERROR = 1, 2, 5, 6, 8, 9, 10, 11, 7

_Check = Callable[[Any], bool]
_Kind = tuple[type[Any], tuple[_Check, ...]]


def encode_plain(message: Request | Reply) -> bytes:
    """The one frame of a message without a tensor."""
    kind, names = _FIELDS_OUT[type(message)]
    fields = [getattr(message, name) for name in names]
    if isinstance(message, (Hold, Drop)):
        fields[2] = pack_experts(message.experts)
    return bytes(packb((WIRE_VERSION, kind, *fields)))


def decode_plain_request(header: tuple[Any, ...], frames: Sequence[Any], limits: WireLimits) -> Request:
    """A head's message without a tensor, from its header; raises WireError."""
    request: Request = _decode(header, frames, limits, _REQUESTS)
    return request


def decode_plain_reply(header: tuple[Any, ...], frames: Sequence[Any], limits: WireLimits) -> Reply:
    """A worker's message without a tensor, from its header; raises WireError."""
    reply: Reply = _decode(header, frames, limits, _REPLIES)
    return reply


def _decode(
    header: tuple[Any, ...], frames: Sequence[Any], limits: WireLimits, kinds: Mapping[int, _Kind]
) -> Any:
    _, kind, request_id, *fields = header
    if kind not in kinds:
        raise WireError(ErrorCode.MALFORMED, f"no message of type {kind} is expected here", request_id)
    make, checks = kinds[kind]
    fits = len(fields) == len(checks) and len(frames) == 1
    if not fits or not all(check(field) for check, field in zip(checks, fields, strict=True)):
        raise WireError(ErrorCode.MALFORMED, "the fields are not those of this message type", request_id)
    for place, (check, field) in enumerate(zip(checks, fields, strict=True)):
        if check is _is_block:
            fields[place] = unpack_experts(field, limits, request_id)
        elif check in _ENUMS:
            fields[place] = _ENUMS[check](field)
    return make(request_id, *fields)


def _is_text(value: Any) -> bool:
    return type(value) is str and len(value) <= MAX_TEXT_CHARS


def _is_flag(value: Any) -> bool:
    return type(value) is bool


def _is_seconds(value: Any) -> bool:
    return type(value) is float and 0.0 <= value < math.inf


def _is_block(value: Any) -> bool:
    return type(value) is bytes


def _is_state(value: Any) -> bool:
    return type(value) is str and value in _STATES


def _is_error_code(value: Any) -> bool:
    return type(value) is str and value in _ERROR_CODES


_STATES = frozenset(state.value for state in WorkerState)
_ERROR_CODES = frozenset(code.value for code in ErrorCode)
_ENUMS: dict[_Check, type[WorkerState] | type[ErrorCode]] = {
    _is_state: WorkerState,
    _is_error_code: ErrorCode,
}

# What each field after the request id must be.
_REQUESTS: dict[int, _Kind] = {
    HELLO: (Hello, (is_unsigned,)),
    PING: (Ping, (is_unsigned, is_unsigned)),
    HOLD: (Hold, (is_unsigned, _is_block, is_unsigned)),
    DROP: (Drop, (is_unsigned, _is_block)),
    SHUTDOWN: (Shutdown, ()),
}
_REPLIES: dict[int, _Kind] = {
    HELLO_REPLY: (
        HelloReply,
        (_is_text, is_unsigned, _is_state, _is_text, _is_text, _is_text, is_unsigned, _is_text),
    ),
    PONG: (
        Pong,
        (
            is_unsigned,
            _is_state,
            is_unsigned,
            is_unsigned,
            is_unsigned,
            is_unsigned,
            _is_seconds,
            is_unsigned,
        ),
    ),
    HELD: (Held, (is_unsigned, _is_flag, is_unsigned, _is_text)),
    ERROR: (ErrorReply, (_is_error_code, _is_text)),
}
_FIELDS_OUT: dict[type, tuple[int, tuple[str, ...]]] = {
    make: (kind, make.__slots__) for kinds in (_REQUESTS, _REPLIES) for kind, (make, _) in kinds.items()
}
