"""The header that every message begins with: a flat msgpack array of version, type, request id, fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgpack import UnpackException, unpackb

from transport.messages import MAX_TEXT_CHARS, WIRE_VERSION, ErrorCode, WireError, WireLimits

MAX_U64 = 2**64 - 1
MAX_FIELDS = 16


def unpack_header(frames: Sequence[Any], limits: WireLimits) -> tuple[Any, ...]:
    """This version, an integer type, a request id, the fields as they came.

    Raises:
        WireError: too many frames, too long, another version, or no such array.
    """
    if not 1 <= len(frames) <= 2:
        raise WireError(ErrorCode.MALFORMED, f"a message has 1 or 2 frames, not {len(frames)}")
    frame, max_bytes = frames[0], limits.max_header_bytes
    if len(frame) > max_bytes:
        raise WireError(ErrorCode.TOO_LARGE, f"header of {len(frame)} bytes, at most {max_bytes}")
    try:
        header = unpackb(
            frame,
            raw=False,
            use_list=False,
            strict_map_key=True,
            max_str_len=4 * MAX_TEXT_CHARS,
            max_bin_len=max_bytes,
            max_array_len=MAX_FIELDS,
            max_map_len=0,
            max_ext_len=0,
        )
    except (ValueError, UnpackException):
        header = None
    if type(header) is not tuple or len(header) < 3:
        message = "the header is not a msgpack array of version, type, request id, ..."
        raise WireError(ErrorCode.MALFORMED, message)
    version, kind, request_id = header[:3]
    if not is_unsigned(request_id):
        raise WireError(ErrorCode.MALFORMED, "the request id is not an unsigned 64-bit number")
    if type(version) is not int or version != WIRE_VERSION:
        message = f"wire version {quote(version)} is not {WIRE_VERSION}: run one Potluck release on both ends"
        raise WireError(ErrorCode.BAD_VERSION, message, request_id)
    if type(kind) is not int:
        raise WireError(ErrorCode.MALFORMED, "the message type is not a number", request_id)
    return header


def quote(value: Any) -> str:
    """A stranger's value in an error message: short, whatever it is."""
    return f"{value!r:.40}" if type(value) in (int, float, str) else f"of type {type(value).__name__}"


def is_unsigned(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_U64
