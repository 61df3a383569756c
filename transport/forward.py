"""The two messages of a decode step, with a fixed header each: rows to a worker, and their sums back.

A header is little-endian: a byte that begins no msgpack value, the version, the type, then `_REQUEST` or
`_REPLY`, then what belongs to each row. Its fields lie at fixed places, so reading one is a single call.
After a process has slept, the processor's caches have lost its code, and each Python call then costs about a
microsecond: these messages are handled with as few as can be.
"""

from __future__ import annotations

from struct import Struct
from typing import Any

import numpy as np
from numpy import ndarray
from numpy.typing import NDArray

from placement.wire_form import WIRE_FORMS
from transport.expert_rows import ExpertRows, Hidden
from transport.messages import WIRE_VERSION, ErrorCode, ForwardReply, ForwardRequest, WireError, WireLimits
from transport.native import frames as native
from transport.rounded_hidden import RoundedHidden

# The first byte of these headers; no msgpack value begins with it.
MARK = 0xC1
FORWARD, FORWARD_REPLY = 3, 4

# Mark, version, type, form; rows, hidden size, experts a token, layer; request id, session, epoch. Then int32
# expert ids, float32 weights, int32 scale exponents. These are within -126 to 126, so both 2^e and 2^-e are
# normal float32 numbers.
_REQUEST = Struct("<4B4I3Q")
# Mark, version, type, 0; rows, hidden size; request id, seconds computed. Then a byte for each row's flag.
_REPLY = Struct("<4B2IQd")
REQUEST_BYTES, REPLY_BYTES = _REQUEST.size, _REPLY.size

_INT32 = np.dtype("<i4")
_FLOAT32 = np.dtype("<f4")
_BOOL = np.dtype(np.bool_)
_BFLOAT16_BITS = np.dtype("<u2")
# A form's number is its place in `WIRE_FORMS`. The first have no blocks, but these dtypes.
_DTYPES = (_FLOAT32, _BFLOAT16_BITS)
_PLAIN = {dtype: number for number, dtype in enumerate(_DTYPES)}
_ROUNDED = {form.blocks: number for number, form in enumerate(WIRE_FORMS) if form.blocks}

_request_header, _reply_header = native.request_header, native.reply_header
_read_request, _read_reply = native.read_request, native.read_reply

Frame = bytes | memoryview | NDArray[Any]
Frames = tuple[bytes, Frame]
"""A header and a tensor."""


def encode_request(request_id: int, session: int, epoch: int, layer: int, rows: ExpertRows) -> Frames:
    """Frames of a `ForwardRequest`; the tensor frame is the rows' own array where that is contiguous."""
    hidden, expert_ids, weights, scale_exponents = rows
    num_rows, hidden_size = hidden.shape
    tensor: Frame
    if isinstance(hidden, RoundedHidden):
        form = _ROUNDED[tuple(part.block for part in hidden.parts)]
        tensor = hidden.tobytes()
    else:
        form = _PLAIN[hidden.dtype]
        tensor = hidden if hidden.flags.c_contiguous else np.ascontiguousarray(hidden)
    header = _request_header(
        WIRE_VERSION,
        form,
        num_rows,
        hidden_size,
        expert_ids.shape[1],
        layer,
        request_id,
        session,
        epoch,
        expert_ids,
        weights,
        scale_exponents,
    )
    return header, tensor


def encode_reply(reply: ForwardReply) -> Frames:
    """Frames of a `ForwardReply`; the tensor frame is its own array where that is contiguous."""
    request_id, values, saturated, compute_s = reply
    num_rows, hidden_size = values.shape
    header = _reply_header(WIRE_VERSION, num_rows, hidden_size, request_id, compute_s, saturated)
    return header, values if values.flags.c_contiguous else np.ascontiguousarray(values)


def decode_request(frames: list[Any], limits: WireLimits) -> ForwardRequest | None:
    """A head's rows, in arrays that are views of the frames, and aligned; None for another kind of message.

    Raises:
        WireError: with the code and, where it could be read, the request id to answer.
    """
    found = _read_request(frames, limits.of_forward, limits.row_bytes)
    if found is None:
        return None
    if isinstance(found, int):
        raise _refusal(found, frames, limits)
    request_id, session, epoch, layer, form, num_rows = found
    if layer not in limits.moe_layers:
        raise _refusal(_UNKNOWN_LAYER, frames, limits)
    header, tensor = frames
    hidden: Hidden
    if form < len(_DTYPES):
        hidden = ndarray((num_rows, limits.hidden_size), _DTYPES[form], tensor)
        if not hidden.flags.aligned:
            hidden = hidden.copy()
    else:
        hidden = _rounded(tensor, WIRE_FORMS[form].blocks, num_rows, limits.hidden_size, request_id)
    top_k = limits.top_k
    ids_bytes = 4 * num_rows * top_k
    shape = num_rows, top_k
    expert_ids = ndarray(shape, _INT32, header, REQUEST_BYTES)
    if not expert_ids.flags.aligned:
        header = bytearray(header)
        expert_ids = ndarray(shape, _INT32, header, REQUEST_BYTES)
    weights = ndarray(shape, _FLOAT32, header, REQUEST_BYTES + ids_bytes)
    scale_exponents = ndarray((num_rows,), _INT32, header, REQUEST_BYTES + 2 * ids_bytes)
    rows = ExpertRows(hidden, expert_ids, weights, scale_exponents)
    return ForwardRequest(request_id, session, epoch, layer, rows)


def decode_reply(frames: list[Any], limits: WireLimits) -> ForwardReply | None:
    """A worker's sums, in views of the frames; None for another kind of message.

    Raises:
        WireError: see `decode_request`.
    """
    found = _read_reply(frames, limits.of_forward)
    if found is None:
        return None
    if isinstance(found, int):
        raise _refusal(found, frames, limits)
    request_id, num_rows, compute_s = found
    header, tensor = frames
    values = ndarray((num_rows, limits.hidden_size), _INT32, tensor)
    if not values.flags.aligned:
        values = values.copy()
    saturated = ndarray((num_rows,), _BOOL, header, REPLY_BYTES)
    return ForwardReply(request_id, values, saturated, compute_s)


def _rounded(
    frame: Any, blocks: tuple[int, ...], num_rows: int, hidden_size: int, request_id: int
) -> RoundedHidden:
    """The message's rows, rounded to 8 bits; of sizes that are checked already."""
    hidden = RoundedHidden.from_buffer(frame, blocks, num_rows, hidden_size)
    for part in hidden.parts:
        # The kernels count on magnitudes of at most 127.
        if part.q.min() < -127:
            raise WireError(ErrorCode.BAD_SHAPE, "a rounded value of -128, expected -127 to 127", request_id)
    return hidden


def _refusal(fault: int, frames: list[Any], limits: WireLimits) -> WireError:
    """The error of a message in which something is wrong."""
    code, text = _FAULTS[fault]
    start = bytes(memoryview(frames[0])[:REQUEST_BYTES]).ljust(REQUEST_BYTES, b"\0")
    _, version, kind, form, num_rows, hidden_size, top_k, layer, request_id, _, _ = _REQUEST.unpack(start)
    if kind == FORWARD_REPLY:
        _, _, _, _, num_rows, hidden_size, request_id, _ = _REPLY.unpack(start[:REPLY_BYTES])
    message = text.format(
        limits=limits,
        num_frames=len(frames),
        header_bytes=len(frames[0]),
        tensor_bytes=len(frames[-1]),
        version=version,
        kind=kind,
        form=form,
        num_rows=num_rows,
        hidden_size=hidden_size,
        top_k=top_k,
        layer=layer,
    )
    # Of a message of another kind nobody knows where its request's number is.
    return WireError(code, message, request_id if fault > _OTHER_TYPE else 0)


# By the number that `frames.c` gives what is wrong.
_FAULTS: tuple[tuple[ErrorCode, str], ...] = (
    (ErrorCode.INTERNAL, "nothing is wrong"),
    (ErrorCode.MALFORMED, "{num_frames} frames, expected a header and a tensor"),
    (ErrorCode.MALFORMED, "a header of {header_bytes} bytes, which is no message's"),
    (
        ErrorCode.BAD_VERSION,
        f"wire version {{version}} is not {WIRE_VERSION}: run one Potluck release on both ends",
    ),
    (ErrorCode.MALFORMED, "no message of type {kind} is expected here"),
    (ErrorCode.UNKNOWN_LAYER, "layer {layer} is not a MoE layer of this model"),
    (ErrorCode.BAD_SHAPE, "{top_k} experts a token, expected {limits.top_k}"),
    (ErrorCode.BAD_SHAPE, "hidden size {hidden_size}, expected {limits.hidden_size}"),
    (ErrorCode.BAD_SHAPE, "no rows, expected 1 to {limits.max_rows}"),
    (ErrorCode.TOO_LARGE, "{num_rows} rows in one message, at most {limits.max_rows}"),
    (ErrorCode.BAD_SHAPE, "a header of {header_bytes} bytes does not fit routing of {num_rows} rows"),
    (ErrorCode.BAD_DTYPE, "rows in form {form}, which this release does not know"),
    (ErrorCode.BAD_DTYPE, "rows in form {form}, which do not fit a hidden size of {hidden_size}"),
    (
        ErrorCode.BAD_SHAPE,
        "{tensor_bytes} bytes of numbers do not fit [{num_rows}, {hidden_size}] in form {form}",
    ),
    (ErrorCode.BAD_SHAPE, "an expert id outside -1 to one less than {limits.num_experts}"),
    (ErrorCode.BAD_SHAPE, "a scale exponent outside -126 to 126"),
    (ErrorCode.MALFORMED, "the compute time is not a number of seconds"),
    (ErrorCode.BAD_SHAPE, "the saturation flags are not {num_rows} zeros and ones"),
)
_OTHER_TYPE, _UNKNOWN_LAYER = 4, 5
