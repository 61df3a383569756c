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
from collections.abc import Callable, Sequence
from typing import Any, cast

import msgpack
import numpy as np
from numpy.typing import NDArray

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
    routing_bytes,
)

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
_ERROR_CODES = frozenset(code.value for code in ErrorCode)

Frame = bytes | memoryview | NDArray[Any]


def encode(message: Request | Reply) -> list[Frame]:
    """Frames of a message; the tensor frame, if there is one, is the message's own array."""
    if isinstance(message, ForwardRequest):
        return _encode_forward(message)
    if isinstance(message, ForwardReply):
        return _encode_forward_reply(message)
    kind, names = _FIELDS_OUT[type(message)]
    return [msgpack.packb((VERSION, kind, *[getattr(message, name) for name in names]))]


def decode_request(frames: Sequence[Any], limits: WireLimits) -> Request:
    """What a head sent. Frames are bytes-like; the arrays of a `ForwardRequest` keep them alive.

    Raises:
        WireError: with the code and, where it could be read, the request id to answer.
    """
    return cast(Request, _decode(frames, limits, _REQUESTS))


def decode_reply(frames: Sequence[Any], limits: WireLimits) -> Reply:
    """What a worker sent, an `ErrorReply` included.

    Raises:
        WireError: the worker does not speak this protocol, or its answer is outside the limits.
    """
    return cast(Reply, _decode(frames, limits, _REPLIES))


def _encode_forward(request: ForwardRequest) -> list[Frame]:
    num_rows, hidden_size = request.hidden.shape
    routing = b"".join(
        (request.expert_ids.tobytes(), request.weights.tobytes(), request.scale_exponents.tobytes())
    )
    header = (
        VERSION,
        FORWARD,
        request.request_id,
        request.epoch,
        request.layer,
        num_rows,
        request.expert_ids.shape[1],
        hidden_size,
        _HIDDEN_TAGS[request.hidden.dtype],
        routing,
    )
    return [msgpack.packb(header), np.ascontiguousarray(request.hidden)]


def _encode_forward_reply(reply: ForwardReply) -> list[Frame]:
    num_rows, hidden_size = reply.values.shape
    flags = reply.saturated.tobytes()
    header = (VERSION, FORWARD_REPLY, reply.request_id, num_rows, hidden_size, reply.compute_s, flags)
    return [msgpack.packb(header), np.ascontiguousarray(reply.values)]


def _decode(frames: Sequence[Any], limits: WireLimits, kinds: dict[int, _Decoder]) -> Request | Reply:
    if not 1 <= len(frames) <= 2:
        raise WireError(ErrorCode.MALFORMED, f"a message has 1 or 2 frames, not {len(frames)}")
    header = _unpack(frames[0], limits)
    version, kind, request_id, *fields = header
    if not _is_unsigned(request_id):
        raise WireError(ErrorCode.MALFORMED, "the request id is not an unsigned 64-bit number")
    if version != VERSION:
        message = (
            f"wire version {_shown(version)} is not {VERSION}: run the same Potluck release on both ends"
        )
        raise WireError(ErrorCode.BAD_VERSION, message, request_id)
    decoder = kinds.get(kind) if type(kind) is int else None
    if decoder is None:
        raise WireError(
            ErrorCode.MALFORMED, f"no message of type {_shown(kind)} is expected here", request_id
        )
    try:
        return decoder(request_id, fields, frames[1:], limits)
    except WireError as error:
        error.request_id = request_id
        raise


def _unpack(frame: Any, limits: WireLimits) -> tuple[Any, ...]:
    """A header as a flat tuple of at least version, type and request id."""
    if len(frame) > limits.max_header_bytes:
        raise WireError(
            ErrorCode.TOO_LARGE, f"header of {len(frame)} bytes, at most {limits.max_header_bytes}"
        )
    try:
        header = msgpack.unpackb(
            frame,
            raw=False,
            use_list=False,
            strict_map_key=True,
            max_str_len=4 * MAX_TEXT_CHARS,
            max_bin_len=limits.max_header_bytes,
            max_array_len=16,
            max_map_len=0,
            max_ext_len=0,
        )
    except (ValueError, msgpack.UnpackException):
        header = None
    if type(header) is not tuple or len(header) < 3:
        raise WireError(
            ErrorCode.MALFORMED, "the header is not a msgpack array of version, type, request id, ..."
        )
    return header


def _decode_forward(request_id: int, fields: list[Any], rest: Sequence[Any], limits: WireLimits) -> Request:
    if len(fields) != 7:
        raise WireError(ErrorCode.MALFORMED, f"a forward request has 7 fields, not {len(fields)}")
    epoch, layer, num_rows, top_k, hidden_size, tag, routing = fields
    if epoch != limits.epoch:
        message = f"plan epoch {_shown(epoch)}, this worker serves {limits.epoch}: start again from one plan"
        raise WireError(ErrorCode.WRONG_EPOCH, message)
    if type(layer) is not int or layer not in limits.moe_layers:
        raise WireError(ErrorCode.UNKNOWN_LAYER, f"layer {_shown(layer)} is not a MoE layer of this model")
    _check_rows(num_rows, hidden_size, limits)
    if top_k != limits.top_k:
        raise WireError(ErrorCode.BAD_SHAPE, f"{_shown(top_k)} experts a token, expected {limits.top_k}")
    dtype = _HIDDEN_DTYPES.get(tag) if type(tag) is str else None
    if dtype is None:
        message = f"hidden dtype {_shown(tag)}, expected one of {', '.join(_HIDDEN_DTYPES)}"
        raise WireError(ErrorCode.BAD_DTYPE, message)
    if type(routing) is not bytes or len(routing) != routing_bytes(num_rows, limits.top_k):
        message = f"the routing block is not {routing_bytes(num_rows, limits.top_k)} bytes"
        raise WireError(ErrorCode.BAD_SHAPE, message)
    hidden = _tensor(rest, dtype, num_rows, limits.hidden_size)

    # One copy, so that the three views are writable and aligned: torch takes them as they are.
    block = bytearray(routing)
    split = 4 * num_rows * limits.top_k
    expert_ids = np.ndarray((num_rows, limits.top_k), _INT32, block)
    weights = np.ndarray((num_rows, limits.top_k), _FLOAT32, block, split)
    scale_exponents = np.ndarray((num_rows,), _INT32, block, 2 * split)
    if not _within(expert_ids, -1, limits.num_experts - 1):
        raise WireError(ErrorCode.BAD_SHAPE, f"expert ids outside -1..{limits.num_experts - 1}")
    if not _within(scale_exponents, MIN_SCALE_EXPONENT, MAX_SCALE_EXPONENT):
        message = f"scale exponents outside {MIN_SCALE_EXPONENT}..{MAX_SCALE_EXPONENT}"
        raise WireError(ErrorCode.BAD_SHAPE, message)
    return ForwardRequest(request_id, limits.epoch, layer, hidden, expert_ids, weights, scale_exponents)


def _decode_forward_reply(
    request_id: int, fields: list[Any], rest: Sequence[Any], limits: WireLimits
) -> Reply:
    if len(fields) != 4:
        raise WireError(ErrorCode.MALFORMED, f"a forward reply has 4 fields, not {len(fields)}")
    num_rows, hidden_size, compute_s, flags = fields
    _check_rows(num_rows, hidden_size, limits)
    if type(compute_s) is not float or not 0.0 <= compute_s < math.inf:
        raise WireError(ErrorCode.MALFORMED, "the compute time is not a number of seconds")
    if type(flags) is not bytes or len(flags) != num_rows or flags.strip(b"\0\1"):
        raise WireError(ErrorCode.BAD_SHAPE, f"the saturation flags are not {num_rows} zeros and ones")
    values = _tensor(rest, _INT32, num_rows, limits.hidden_size)
    return ForwardReply(request_id, values, np.ndarray((num_rows,), _BOOL, flags), compute_s)


def _check_rows(num_rows: Any, hidden_size: Any, limits: WireLimits) -> None:
    if type(num_rows) is not int or num_rows < 1:
        raise WireError(ErrorCode.BAD_SHAPE, f"{_shown(num_rows)} rows, expected 1 to {limits.max_rows}")
    if num_rows > limits.max_rows:
        raise WireError(ErrorCode.TOO_LARGE, f"{num_rows} rows in one message, at most {limits.max_rows}")
    if hidden_size != limits.hidden_size:
        raise WireError(
            ErrorCode.BAD_SHAPE, f"hidden size {_shown(hidden_size)}, expected {limits.hidden_size}"
        )


def _within(numbers: NDArray[np.int32], lowest: int, highest: int) -> bool:
    # Python's min and max of a decode step's few numbers take a third of the time of numpy's.
    values = numbers.ravel().tolist() if numbers.size <= 64 else (numbers.min(), numbers.max())
    return bool(lowest <= min(values) and max(values) <= highest)


def _tensor(rest: Sequence[Any], dtype: np.dtype[Any], num_rows: int, hidden_size: int) -> NDArray[Any]:
    expected_bytes = num_rows * hidden_size * dtype.itemsize
    if len(rest) != 1 or len(rest[0]) != expected_bytes:
        found = f"{len(rest[0])} bytes" if rest else "no frame"
        message = f"{found} for [{num_rows}, {hidden_size}] {dtype.name}, expected {expected_bytes} bytes"
        raise WireError(ErrorCode.BAD_SHAPE, message)
    tensor: NDArray[Any] = np.ndarray((num_rows, hidden_size), dtype, rest[0])
    # libzmq hands out small frames from the middle of its receive buffer, at any address.
    return tensor if tensor.flags.aligned else tensor.copy()


def _shown(value: Any) -> str:
    """A stranger's value in an error message: short, whatever it is."""
    return f"{value!r:.40}" if type(value) in (int, float, str) else f"of type {type(value).__name__}"


def _is_unsigned(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_U64


def _is_text(value: Any) -> bool:
    return type(value) is str and len(value) <= MAX_TEXT_CHARS


def _is_error_code(value: Any) -> bool:
    return type(value) is str and value in _ERROR_CODES


_Decoder = Callable[[int, list[Any], Sequence[Any], WireLimits], Request | Reply]


def _plain(make: Callable[..., Request | Reply], *checks: Callable[[Any], bool]) -> _Decoder:
    """Decoder of a message without a tensor: `make(request_id, *fields)`, each field held to its check."""

    def decode(
        request_id: int, fields: list[Any], rest: Sequence[Any], limits: WireLimits
    ) -> Request | Reply:
        fits = len(fields) == len(checks) and not rest
        if not fits or not all(check(field) for check, field in zip(checks, fields, strict=True)):
            raise WireError(ErrorCode.MALFORMED, "the fields are not those of this message type")
        return make(request_id, *fields)

    return decode


def _error_reply(request_id: int, code: str, message: str) -> ErrorReply:
    return ErrorReply(request_id, ErrorCode(code), message)


_REQUESTS: dict[int, _Decoder] = {
    HELLO: _plain(Hello),
    FORWARD: _decode_forward,
    PING: _plain(Ping),
}
_REPLIES: dict[int, _Decoder] = {
    HELLO_REPLY: _plain(HelloReply, _is_text, _is_unsigned, _is_text, _is_text, _is_unsigned),
    FORWARD_REPLY: _decode_forward_reply,
    PONG: _plain(Pong, _is_unsigned),
    ERROR: _plain(_error_reply, _is_error_code, _is_text),
}
_FIELDS_OUT: dict[type, tuple[int, tuple[str, ...]]] = {
    Hello: (HELLO, Hello.__slots__),
    HelloReply: (HELLO_REPLY, HelloReply.__slots__),
    Ping: (PING, Ping.__slots__),
    Pong: (PONG, Pong.__slots__),
    ErrorReply: (ERROR, ErrorReply.__slots__),
}
