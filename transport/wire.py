"""Messages to frames and back: a header frame, then at most one raw tensor frame.

The two messages of a decode step have fixed headers (`forward.py`). All others are one msgpack array
`(version, type, request_id, *fields)` without a tensor (`plain.py`). A tensor is C-contiguous little-endian
numbers. What belongs to each row (expert ids, weights, scale exponents, saturation flags) rides in the
header: a small frame after a large one costs two more system calls at each end, about 20 µs a round trip over
loopback.

Nothing here waits, opens a socket or trusts its input: `decode_request` and `decode_reply` raise `WireError`
and nothing else, whatever the bytes, and compare every size with `WireLimits` before anything is allocated.
Tensors are views: of the caller's array on the way out, of the received frame on the way in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transport import forward
from transport.forward import Frame
from transport.header import unpack_header
from transport.messages import ForwardReply, ForwardRequest, Reply, Request, WireLimits
from transport.plain import decode_plain_reply, decode_plain_request, encode_plain


def encode(message: Request | Reply) -> Sequence[Frame]:
    """Frames of a message; the tensor frame, if there is one, is the message's own array."""
    if isinstance(message, ForwardReply):
        return forward.encode_reply(message)
    if isinstance(message, ForwardRequest):
        return forward.encode_request(*message)
    return [encode_plain(message)]


def decode_request(frames: list[Any], limits: WireLimits) -> Request:
    """What a head sent. Frames are bytes-like; the arrays of a `ForwardRequest` keep them alive.

    Raises:
        WireError: with the code and, where it could be read, the request id to answer.
    """
    message = forward.decode_request(frames, limits)
    if message is not None:
        return message
    return decode_plain_request(unpack_header(frames, limits), frames, limits)


def decode_reply(frames: list[Any], limits: WireLimits) -> Reply:
    """What a worker sent, an `ErrorReply` included.

    Raises:
        WireError: the worker does not speak this protocol, or its answer is outside the limits.
    """
    message = forward.decode_reply(frames, limits)
    if message is not None:
        return message
    return decode_plain_reply(unpack_header(frames, limits), frames, limits)
