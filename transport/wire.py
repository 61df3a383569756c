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
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from msgpack import UnpackException, packb, unpackb
from numpy import ndarray
from numpy.typing import NDArray

from placement.wire_form import WIRE_FORMS, WireForm
from transport.expert_rows import ExpertRows, Hidden
from transport.messages import (
    MAX_TEXT_CHARS,
    ErrorCode,
    ErrorReply,
    ForwardReply,
    ForwardRequest,
    Hello,
    HelloReply,
    Ping,
    Pong,
    Reply,
    Request,
    WireError,
    WireLimits,
)
from transport.rounded_hidden import RoundedHidden

VERSION = 1
MAX_U64 = 2**64 - 1
# Both 2^e and 2^-e are normal float32 numbers in this range.
MIN_SCALE_EXPONENT, MAX_SCALE_EXPONENT = -126, 126

HELLO, HELLO_REPLY, FORWARD, FORWARD_REPLY, PING, PONG, ERROR = range(1, 8)

_INT32 = np.dtype("<i4")
_FLOAT32 = np.dtype("<f4")
_BOOL = np.dtype(np.bool_)
_BFLOAT16_BITS = np.dtype("<u2")
_HIDDEN_DTYPES: dict[str, np.dtype[Any]] = {"f32": _FLOAT32, "bf16": _BFLOAT16_BITS}
_HIDDEN_TAGS = {dtype: tag for tag, dtype in _HIDDEN_DTYPES.items()}
# Rounded to 8 bits, in blocks of these widths.
_ROUNDED_FORMS = {form.name: form for form in WIRE_FORMS if form.blocks}
_ROUNDED_TAGS = {form.blocks: tag for tag, form in _ROUNDED_FORMS.items()}
_ERROR_CODES = frozenset(code.value for code in ErrorCode)

Frame = bytes | memoryview | NDArray[Any]


def encode(message: Request | Reply) -> list[Frame]:
    """Frames of a message; the tensor frame, if there is one, is the message's own array."""
    if isinstance(message, ForwardRequest):
        return _encode_forward(message)
    if isinstance(message, ForwardReply):
        return _encode_forward_reply(message)
    kind, names = _FIELDS_OUT[type(message)]
    return [packb((VERSION, kind, *[getattr(message, name) for name in names]))]


def decode_request(frames: Sequence[Any], limits: WireLimits) -> Request:
    """What a head sent. Frames are bytes-like; the arrays of a `ForwardRequest` keep them alive.

    Raises:
        WireError: with the code and, where it could be read, the request id to answer.
    """
    header = _unpack(frames, limits)
    if header[1] == FORWARD:
        return _decode_forward(header, frames, limits)
    return cast(Request, _decode_plain(header, frames, _PLAIN_REQUESTS))


def decode_reply(frames: Sequence[Any], limits: WireLimits) -> Reply:
    """What a worker sent, an `ErrorReply` included.

    Raises:
        WireError: the worker does not speak this protocol, or its answer is outside the limits.
    """
    header = _unpack(frames, limits)
    if header[1] == FORWARD_REPLY:
        return _decode_forward_reply(header, frames, limits)
    return cast(Reply, _decode_plain(header, frames, _PLAIN_REPLIES))


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
    if len(header) != 10:
        message = f"a forward request has 10 fields, not {len(header)}"
        raise WireError(ErrorCode.MALFORMED, message, header[2])
    _, _, request_id, epoch, layer, num_rows, top_k, hidden_size, tag, routing = header
    if epoch != limits.epoch:
        message = f"plan epoch {_quote(epoch)}, this worker serves {limits.epoch}: start again from one plan"
        raise WireError(ErrorCode.WRONG_EPOCH, message, request_id)
    if type(layer) is not int or layer not in limits.moe_layers:
        message = f"layer {_quote(layer)} is not a MoE layer of this model"
        raise WireError(ErrorCode.UNKNOWN_LAYER, message, request_id)
    if top_k != limits.top_k:
        message = f"{_quote(top_k)} experts a token, expected {limits.top_k}"
        raise WireError(ErrorCode.BAD_SHAPE, message, request_id)
    hidden: Hidden
    if type(tag) is str and tag in _HIDDEN_DTYPES:
        hidden = _tensor(frames, _HIDDEN_DTYPES[tag], num_rows, hidden_size, request_id, limits)
    elif type(tag) is str and tag in _ROUNDED_FORMS:
        hidden = _rounded(frames, _ROUNDED_FORMS[tag], num_rows, hidden_size, request_id, limits)
    else:
        known = ", ".join((*_HIDDEN_DTYPES, *_ROUNDED_FORMS))
        message = f"hidden dtype {_quote(tag)}, expected one of {known}"
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
    return ForwardRequest(request_id, epoch, layer, ExpertRows(hidden, expert_ids, weights, scale_exponents))


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
    _check_frame(frames, expected_bytes, f"[{num_rows}, {hidden_size}] {dtype.name}", request_id)
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
    _check_frame(frames, expected_bytes, f"[{num_rows}, {hidden_size}] {form.name}", request_id)
    hidden = RoundedHidden.from_buffer(frames[1], form.blocks, num_rows, limits.hidden_size)
    for part in hidden.parts:
        # The kernels count on magnitudes of at most 127.
        if part.q.min() < -127:
            raise WireError(ErrorCode.BAD_SHAPE, "a rounded value of -128, expected -127 to 127", request_id)
    return hidden


def _check_rows(num_rows: Any, hidden_size: Any, request_id: int, limits: WireLimits) -> None:
    if type(num_rows) is not int or num_rows < 1:
        message = f"{_quote(num_rows)} rows, expected 1 to {limits.max_rows}"
        raise WireError(ErrorCode.BAD_SHAPE, message, request_id)
    if num_rows > limits.max_rows:
        message = f"{num_rows} rows in one message, at most {limits.max_rows}"
        raise WireError(ErrorCode.TOO_LARGE, message, request_id)
    if hidden_size != limits.hidden_size:
        message = f"hidden size {_quote(hidden_size)}, expected {limits.hidden_size}"
        raise WireError(ErrorCode.BAD_SHAPE, message, request_id)


def _check_frame(frames: Sequence[Any], expected_bytes: int, what: str, request_id: int) -> None:
    if len(frames) != 2 or len(frames[1]) != expected_bytes:
        found = f"{len(frames[1])} bytes" if len(frames) == 2 else "no frame"
        message = f"{found} for {what}, expected {expected_bytes} bytes"
        raise WireError(ErrorCode.BAD_SHAPE, message, request_id)


def _unpack(frames: Sequence[Any], limits: WireLimits) -> tuple[Any, ...]:
    """The header, flat: this version, an integer type, a request id, the fields as they came."""
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
            max_array_len=16,
            max_map_len=0,
            max_ext_len=0,
        )
    except (ValueError, UnpackException):
        header = None
    if type(header) is not tuple or len(header) < 3:
        message = "the header is not a msgpack array of version, type, request id, ..."
        raise WireError(ErrorCode.MALFORMED, message)
    version, kind, request_id = header[:3]
    if type(request_id) is not int or not 0 <= request_id <= MAX_U64:
        raise WireError(ErrorCode.MALFORMED, "the request id is not an unsigned 64-bit number")
    if version != VERSION:
        message = f"wire version {_quote(version)} is not {VERSION}: run one Potluck release on both ends"
        raise WireError(ErrorCode.BAD_VERSION, message, request_id)
    if type(kind) is not int:
        raise WireError(ErrorCode.MALFORMED, "the message type is not a number", request_id)
    return header


def _decode_plain(
    header: tuple[Any, ...], frames: Sequence[Any], kinds: Mapping[int, _Plain]
) -> Request | Reply:
    """A message without a tensor."""
    _, kind, request_id, *fields = header
    if kind not in kinds:
        raise WireError(ErrorCode.MALFORMED, f"no message of type {kind} is expected here", request_id)
    make, checks = kinds[kind]
    fits = len(fields) == len(checks) and len(frames) == 1
    if not fits or not all(check(field) for check, field in zip(checks, fields, strict=True)):
        raise WireError(ErrorCode.MALFORMED, "the fields are not those of this message type", request_id)
    return make(request_id, *fields)


def _quote(value: Any) -> str:
    """A stranger's value in an error message: short, whatever it is."""
    return f"{value!r:.40}" if type(value) in (int, float, str) else f"of type {type(value).__name__}"


def _is_unsigned(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_U64


def _is_text(value: Any) -> bool:
    return type(value) is str and len(value) <= MAX_TEXT_CHARS


def _is_error_code(value: Any) -> bool:
    return type(value) is str and value in _ERROR_CODES


def _error_reply(request_id: int, code: str, message: str) -> ErrorReply:
    return ErrorReply(request_id, ErrorCode(code), message)


_Plain = tuple[Callable[..., Request | Reply], tuple[Callable[[Any], bool], ...]]

# How each is made of its request id and fields, and what each field must be.
_PLAIN_REQUESTS: dict[int, _Plain] = {HELLO: (Hello, ()), PING: (Ping, ())}
_PLAIN_REPLIES: dict[int, _Plain] = {
    HELLO_REPLY: (HelloReply, (_is_text, _is_unsigned, _is_text, _is_text, _is_unsigned)),
    PONG: (Pong, (_is_unsigned,)),
    ERROR: (_error_reply, (_is_error_code, _is_text)),
}
_FIELDS_OUT: dict[type, tuple[int, tuple[str, ...]]] = {
    Hello: (HELLO, Hello.__slots__),
    HelloReply: (HELLO_REPLY, HelloReply.__slots__),
    Ping: (PING, Ping.__slots__),
    Pong: (PONG, Pong.__slots__),
    ErrorReply: (ERROR, ErrorReply.__slots__),
}
