"""Messages to frames and back: a msgpack header frame, then at most one raw tensor frame.

A message is `[header]` or `[header, tensor]`. The header is one msgpack array
`(version, type, request_id, *fields)`; a tensor is C-contiguous little-endian numbers. Routing (expert ids,
weights, scale exponents) and the saturation flags ride in the header: a small frame after a large one costs
two more system calls at each end, about 20 µs a round trip over loopback.

Nothing here waits, opens a socket or trusts its input: `decode_request` and `decode_reply` raise `WireError`
and nothing else, whatever the bytes, and compare every size with `WireLimits` before anything is allocated.
Tensors are views: of the caller's array on the way out, of the received frame on the way in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from msgpack import packb
from numpy import ndarray
from numpy.typing import NDArray

from placement.wire_form import WIRE_FORMS, WireForm
from transport.expert_rows import ExpertRows, Hidden
from transport.header import VERSION, is_unsigned, quote, unpack_header
from transport.messages import (
    ErrorCode,
    ForwardReply,
    ForwardRequest,
    Reply,
    Request,
    WireError,
    WireLimits,
)
from transport.plain import decode_plain_reply, decode_plain_request, encode_plain
from transport.rounded_hidden import RoundedHidden

# Both 2^e and 2^-e are normal float32 numbers in this range.
MIN_SCALE_EXPONENT, MAX_SCALE_EXPONENT = -126, 126

FORWARD, FORWARD_REPLY = 3, 4

_INT32 = np.dtype("<i4")
_FLOAT32 = np.dtype("<f4")
_BOOL = np.dtype(np.bool_)
_BFLOAT16_BITS = np.dtype("<u2")
_HIDDEN_DTYPES: dict[str, np.dtype[Any]] = {"f32": _FLOAT32, "bf16": _BFLOAT16_BITS}
_HIDDEN_TAGS = {dtype: tag for tag, dtype in _HIDDEN_DTYPES.items()}
# Rounded to 8 bits, in blocks of these widths.
_ROUNDED_FORMS = {form.name: form for form in WIRE_FORMS if form.blocks}
_ROUNDED_TAGS = {form.blocks: tag for tag, form in _ROUNDED_FORMS.items()}

Frame = bytes | memoryview | NDArray[Any]


def encode(message: Request | Reply) -> list[Frame]:
    """Frames of a message; the tensor frame, if there is one, is the message's own array."""
    if isinstance(message, ForwardRequest):
        return _encode_forward(message)
    if isinstance(message, ForwardReply):
        return _encode_forward_reply(message)
    return [encode_plain(message)]


def decode_request(frames: Sequence[Any], limits: WireLimits) -> Request:
    """What a head sent. Frames are bytes-like; the arrays of a `ForwardRequest` keep them alive.

    Raises:
        WireError: with the code and, where it could be read, the request id to answer.
    """
    header = unpack_header(frames, limits)
    if header[1] == FORWARD:
        return _decode_forward(header, frames, limits)
    return decode_plain_request(header, frames, limits)


def decode_reply(frames: Sequence[Any], limits: WireLimits) -> Reply:
    """What a worker sent, an `ErrorReply` included.

    Raises:
        WireError: the worker does not speak this protocol, or its answer is outside the limits.
    """
    header = unpack_header(frames, limits)
    if header[1] == FORWARD_REPLY:
        return _decode_forward_reply(header, frames, limits)
    return decode_plain_reply(header, frames, limits)


# The two messages of a decode step are handled with few function calls. After a process has slept, the
# processor's caches have lost its code, and each Python function then costs about a microsecond.


def _encode_forward(request: ForwardRequest) -> list[Frame]:
    hidden, expert_ids, weights, scale_exponents = request.rows
    num_rows, hidden_size = hidden.shape
    routing = b"".join((expert_ids.tobytes(), weights.tobytes(), scale_exponents.tobytes()))
    header = (
        VERSION,
        FORWARD,
        request.request_id,
        request.session,
        request.epoch,
        request.layer,
        num_rows,
        expert_ids.shape[1],
        hidden_size,
        _tag_of(hidden),
        routing,
    )
    tensor = hidden.tobytes() if isinstance(hidden, RoundedHidden) else np.ascontiguousarray(hidden)
    return [packb(header), tensor]


def _tag_of(hidden: Hidden) -> str:
    if isinstance(hidden, RoundedHidden):
        return _ROUNDED_TAGS[tuple(part.block for part in hidden.parts)]
    return _HIDDEN_TAGS[hidden.dtype]


def _decode_forward(header: tuple[Any, ...], frames: Sequence[Any], limits: WireLimits) -> ForwardRequest:
    if len(header) != 11:
        message = f"a forward request has 11 fields, not {len(header)}"
        raise WireError(ErrorCode.MALFORMED, message, header[2])
    _, _, request_id, session, epoch, layer, num_rows, top_k, hidden_size, tag, routing = header
    if not is_unsigned(session) or not is_unsigned(epoch):
        message = "the session or the plan's epoch is not an unsigned 64-bit number"
        raise WireError(ErrorCode.MALFORMED, message, request_id)
    if type(layer) is not int or layer not in limits.moe_layers:
        message = f"layer {quote(layer)} is not a MoE layer of this model"
        raise WireError(ErrorCode.UNKNOWN_LAYER, message, request_id)
    if type(top_k) is not int or top_k != limits.top_k:
        message = f"{quote(top_k)} experts a token, expected {limits.top_k}"
        raise WireError(ErrorCode.BAD_SHAPE, message, request_id)
    hidden: Hidden
    if type(tag) is str and tag in _HIDDEN_DTYPES:
        hidden = _tensor(frames, _HIDDEN_DTYPES[tag], num_rows, hidden_size, request_id, limits)
    elif type(tag) is str and tag in _ROUNDED_FORMS:
        hidden = _rounded(frames, _ROUNDED_FORMS[tag], num_rows, hidden_size, request_id, limits)
    else:
        known = ", ".join((*_HIDDEN_DTYPES, *_ROUNDED_FORMS))
        message = f"hidden dtype {quote(tag)}, expected one of {known}"
        raise WireError(ErrorCode.BAD_DTYPE, message, request_id)
    if type(routing) is not bytes or len(routing) != num_rows * limits.routing_bytes_per_row:
        message = f"the routing block is not {num_rows * limits.routing_bytes_per_row} bytes"
        raise WireError(ErrorCode.BAD_SHAPE, message, request_id)

    # One copy, so that the three views are writable and aligned: the kernels take them as they are.
    block = bytearray(routing)
    size = num_rows * top_k
    expert_ids = ndarray((num_rows, top_k), _INT32, block)
    scale_exponents = ndarray((num_rows,), _INT32, block, 8 * size)
    if num_rows == 1:
        # Python's min and max of a decode step's few numbers take a third of the time of numpy's.
        ids, exponents = expert_ids.tolist()[0], scale_exponents.tolist()
    else:
        ids = expert_ids.min(), expert_ids.max()
        exponents = scale_exponents.min(), scale_exponents.max()
    if min(ids) < -1 or max(ids) >= limits.num_experts:
        message = f"expert ids outside -1..{limits.num_experts - 1}"
        raise WireError(ErrorCode.BAD_SHAPE, message, request_id)
    if min(exponents) < MIN_SCALE_EXPONENT or max(exponents) > MAX_SCALE_EXPONENT:
        message = f"scale exponents outside {MIN_SCALE_EXPONENT}..{MAX_SCALE_EXPONENT}"
        raise WireError(ErrorCode.BAD_SHAPE, message, request_id)
    weights = ndarray((num_rows, top_k), _FLOAT32, block, 4 * size)
    rows = ExpertRows(hidden, expert_ids, weights, scale_exponents)
    return ForwardRequest(request_id, session, epoch, layer, rows)


def _encode_forward_reply(reply: ForwardReply) -> list[Frame]:
    num_rows, hidden_size = reply.values.shape
    flags = reply.saturated.tobytes()
    header = (VERSION, FORWARD_REPLY, reply.request_id, num_rows, hidden_size, reply.compute_s, flags)
    return [packb(header), np.ascontiguousarray(reply.values)]


def _decode_forward_reply(header: tuple[Any, ...], frames: Sequence[Any], limits: WireLimits) -> ForwardReply:
    if len(header) != 7:
        raise WireError(ErrorCode.MALFORMED, f"a forward reply has 7 fields, not {len(header)}", header[2])
    _, _, request_id, num_rows, hidden_size, compute_s, flags = header
    if type(compute_s) is not float or not 0.0 <= compute_s < math.inf:
        raise WireError(ErrorCode.MALFORMED, "the compute time is not a number of seconds", request_id)
    values = _tensor(frames, _INT32, num_rows, hidden_size, request_id, limits)
    if type(flags) is not bytes or len(flags) != num_rows or flags.strip(b"\0\1"):
        message = f"the saturation flags are not {num_rows} zeros and ones"
        raise WireError(ErrorCode.BAD_SHAPE, message, request_id)
    return ForwardReply(request_id, values, ndarray((num_rows,), _BOOL, flags), compute_s)


def _tensor(
    frames: Sequence[Any],
    dtype: np.dtype[Any],
    num_rows: Any,
    hidden_size: Any,
    request_id: int,
    limits: WireLimits,
) -> NDArray[Any]:
    """The message's tensor [num_rows, hidden_size]; its sizes and bytes are checked against the limits."""
    _check_rows(num_rows, hidden_size, request_id, limits)
    expected_bytes = num_rows * limits.hidden_size * dtype.itemsize
    if len(frames) != 2 or len(frames[1]) != expected_bytes:
        what = (
            f"[{num_rows}, {hidden_size}] {dtype.name}"  # numpy takes longer over the name than over the rest
        )
        raise _no_such_frame(frames, expected_bytes, what, request_id)
    tensor: NDArray[Any] = ndarray((num_rows, limits.hidden_size), dtype, frames[1])
    # libzmq hands out small frames from the middle of its receive buffer, at any address.
    return tensor if tensor.flags.aligned else tensor.copy()


def _rounded(
    frames: Sequence[Any],
    form: WireForm,
    num_rows: Any,
    hidden_size: Any,
    request_id: int,
    limits: WireLimits,
) -> RoundedHidden:
    """The message's rows, rounded to 8 bits."""
    _check_rows(num_rows, hidden_size, request_id, limits)
    if any(limits.hidden_size % block for block in form.blocks):
        message = f"rows in {form.name}, which do not fit a hidden size of {limits.hidden_size}"
        raise WireError(ErrorCode.BAD_DTYPE, message, request_id)
    expected_bytes = num_rows * form.row_bytes(limits.hidden_size)
    if len(frames) != 2 or len(frames[1]) != expected_bytes:
        what = f"[{num_rows}, {hidden_size}] {form.name}"
        raise _no_such_frame(frames, expected_bytes, what, request_id)
    hidden = RoundedHidden.from_buffer(frames[1], form.blocks, num_rows, limits.hidden_size)
    for part in hidden.parts:
        # The kernels count on magnitudes of at most 127.
        if part.q.min() < -127:
            raise WireError(ErrorCode.BAD_SHAPE, "a rounded value of -128, expected -127 to 127", request_id)
    return hidden


def _check_rows(num_rows: Any, hidden_size: Any, request_id: int, limits: WireLimits) -> None:
    if type(num_rows) is not int or num_rows < 1:
        message = f"{quote(num_rows)} rows, expected 1 to {limits.max_rows}"
        raise WireError(ErrorCode.BAD_SHAPE, message, request_id)
    if num_rows > limits.max_rows:
        message = f"{num_rows} rows in one message, at most {limits.max_rows}"
        raise WireError(ErrorCode.TOO_LARGE, message, request_id)
    if type(hidden_size) is not int or hidden_size != limits.hidden_size:
        message = f"hidden size {quote(hidden_size)}, expected {limits.hidden_size}"
        raise WireError(ErrorCode.BAD_SHAPE, message, request_id)


def _no_such_frame(frames: Sequence[Any], expected_bytes: int, what: str, request_id: int) -> WireError:
    found = f"{len(frames[1])} bytes" if len(frames) == 2 else "no frame"
    message = f"{found} for {what}, expected {expected_bytes} bytes"
    return WireError(ErrorCode.BAD_SHAPE, message, request_id)
