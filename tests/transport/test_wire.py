"""Messages survive the wire, and nothing else does."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.expert_rows import ExpertRows
from transport.forward import MARK, REPLY_BYTES, REQUEST_BYTES
from transport.messages import (
    WIRE_VERSION,
    Drop,
    ErrorCode,
    ErrorReply,
    ForwardReply,
    ForwardRequest,
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
from transport.rounded_hidden import RoundedHidden, RoundedPart
from transport.wire import decode_reply, decode_request, encode

LIMITS = WireLimits(
    fingerprint="0123456789abcdef",
    moe_layers=frozenset({2, 3, 5}),
    hidden_size=256,
    num_experts=9,
    top_k=3,
    max_rows=6,
)
request_ids = st.integers(0, 2**64 - 1)
texts = st.text(max_size=60)
numbers = st.integers(0, 2**64 - 1)
states = st.sampled_from(WorkerState)
seconds = st.floats(0.0, 1e9, allow_nan=False)
experts = st.dictionaries(
    st.sampled_from(sorted(LIMITS.moe_layers)),
    st.sets(st.integers(0, LIMITS.num_experts - 1), min_size=1).map(lambda ids: tuple(sorted(ids))),
)


def rounded(rng: np.random.Generator, num_rows: int, blocks: tuple[int, ...]) -> RoundedHidden:
    width = LIMITS.hidden_size
    return RoundedHidden(
        tuple(
            RoundedPart(
                block,
                rng.integers(-127, 128, (num_rows, width), dtype=np.int8),
                rng.random((num_rows, width // block), dtype=np.float32),
            )
            for block in blocks
        )
    )


@st.composite
def forward_requests(draw: st.DrawFn) -> ForwardRequest:
    num_rows = draw(st.integers(1, LIMITS.max_rows))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    floats = rng.standard_normal((num_rows, LIMITS.hidden_size), dtype=np.float32)
    hidden = draw(
        st.sampled_from(
            [
                floats,
                floats.view(np.uint16)[:, ::2].copy(),
                *(rounded(rng, num_rows, blocks) for blocks in ((32,), (256,), (32, 256))),
            ]
        )
    )
    return ForwardRequest(
        request_id=draw(request_ids),
        session=draw(numbers),
        epoch=draw(numbers),
        layer=draw(st.sampled_from(sorted(LIMITS.moe_layers))),
        rows=ExpertRows(
            hidden=hidden,
            expert_ids=rng.integers(-1, LIMITS.num_experts, (num_rows, LIMITS.top_k), dtype=np.int32),
            weights=rng.random((num_rows, LIMITS.top_k), dtype=np.float32),
            scale_exponents=rng.integers(-126, 127, num_rows, dtype=np.int32),
        ),
    )


@st.composite
def forward_replies(draw: st.DrawFn) -> ForwardReply:
    num_rows = draw(st.integers(1, LIMITS.max_rows))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = rng.integers(-(2**31), 2**31, (num_rows, LIMITS.hidden_size), dtype=np.int32)
    return ForwardReply(
        draw(request_ids), values, rng.random(num_rows) < 0.5, draw(st.floats(0.0, 1e6, allow_nan=False))
    )


plain_requests: st.SearchStrategy[Request] = st.one_of(
    st.builds(Hello, request_ids, numbers),
    st.builds(Ping, request_ids, numbers, numbers),
    st.builds(Hold, request_ids, numbers, experts, numbers),
    st.builds(Drop, request_ids, numbers, experts),
    st.builds(Shutdown, request_ids),
)
plain_replies: st.SearchStrategy[Reply] = st.one_of(
    st.builds(HelloReply, request_ids, texts, numbers, states, texts, texts, texts, numbers, texts),
    st.builds(Pong, request_ids, numbers, states, numbers, numbers, numbers, numbers, seconds, numbers),
    st.builds(Held, request_ids, numbers, st.booleans(), numbers, texts),
    st.builds(ErrorReply, request_ids, st.sampled_from(ErrorCode), texts),
)
requests: st.SearchStrategy[Request] = st.one_of(plain_requests, forward_requests())
replies: st.SearchStrategy[Reply] = st.one_of(plain_replies, forward_replies())

# Whatever msgpack can say, and more than the protocol ever does.
values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(),
        st.text(max_size=20),
        st.binary(max_size=200),
        st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=8)),
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def example_request(num_rows: int = 2, request_id: int = 5, **changes: Any) -> ForwardRequest:
    rows = ExpertRows(
        hidden=np.ones((num_rows, LIMITS.hidden_size), np.float32),
        expert_ids=np.zeros((num_rows, LIMITS.top_k), np.int32),
        weights=np.ones((num_rows, LIMITS.top_k), np.float32),
        scale_exponents=np.zeros(num_rows, np.int32),
    )
    return ForwardRequest(request_id, 1, 7, 3, rows._replace(**changes))


PONG = Pong(1, 2, WorkerState.READY, 0, 0, 0, 0, 0.0, 0)


def as_bytes(message: Request | Reply) -> list[bytes]:
    return [bytes(frame) for frame in encode(message)]


def same(left: Any, right: Any) -> bool:
    """Field by field, arrays by dtype, shape and bytes."""
    if type(left) is not type(right):
        return False
    for name in left._fields if isinstance(left, tuple) else [field.name for field in fields(left)]:
        a, b = getattr(left, name), getattr(right, name)
        if isinstance(a, np.ndarray):
            if a.dtype != b.dtype or a.shape != b.shape or a.tobytes() != b.tobytes():
                return False
        elif isinstance(a, ExpertRows):
            if not same(a, b):
                return False
        elif isinstance(a, RoundedHidden):
            if not all(map(same, a.parts, b.parts)) or len(a.parts) != len(b.parts):
                return False
        elif a != b:
            return False
    return True


def with_header(message: Request | Reply, change: Callable[[list[Any]], None]) -> list[bytes]:
    """The frames of a message without a tensor after a change to its unpacked header."""
    header, *rest = as_bytes(message)
    unpacked = msgpack.unpackb(header)
    change(unpacked)
    return [msgpack.packb(unpacked), *rest]


# Where each field of a `ForwardRequest`'s header lies, and its form for `struct`.
PLACES = {
    "mark": (0, "B"),
    "version": (1, "B"),
    "type": (2, "B"),
    "form": (3, "B"),
    "num_rows": (4, "I"),
    "hidden_size": (8, "I"),
    "top_k": (12, "I"),
    "layer": (16, "I"),
    "request_id": (20, "Q"),
    "session": (28, "Q"),
    "epoch": (36, "Q"),
}


def with_number(request: ForwardRequest, field: str, value: int) -> list[bytes]:
    """The request's frames after a change to one field of its header."""
    header, tensor = as_bytes(request)
    place, form = PLACES[field]
    changed = bytearray(header)
    struct.pack_into(f"<{form}", changed, place, value)
    return [bytes(changed), tensor]


def code_of(decode: Callable[..., Any], frames: list[bytes], limits: WireLimits = LIMITS) -> ErrorCode:
    with pytest.raises(WireError) as caught:
        decode(frames, limits)
    return caught.value.code


@given(requests)
def test_a_request_arrives_as_it_was_sent(request: Request) -> None:
    assert same(decode_request(as_bytes(request), LIMITS), request)


@given(replies)
def test_a_reply_arrives_as_it_was_sent(reply: Reply) -> None:
    assert same(decode_reply(as_bytes(reply), LIMITS), reply)


@given(st.lists(st.binary(max_size=300), max_size=4))
def test_arbitrary_bytes_are_a_wire_error_and_nothing_else(frames: list[bytes]) -> None:
    for decode in (decode_request, decode_reply):
        with pytest.raises(WireError):
            decode(frames, LIMITS)


@given(values, st.lists(st.binary(max_size=100), max_size=2))
def test_an_arbitrary_header_is_a_wire_error_or_a_plain_message(header: Any, rest: list[bytes]) -> None:
    for decode in (decode_request, decode_reply):
        with contextlib.suppress(WireError):
            decode([msgpack.packb(header), *rest], LIMITS)


@given(st.one_of(plain_requests, plain_replies), st.data())
def test_one_field_replaced_is_a_wire_error_or_a_valid_message(message: Any, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(msgpack.unpackb(as_bytes(message)[0])) - 1))
    value = data.draw(values)
    frames = with_header(message, lambda header: header.__setitem__(place, value))
    for decode in (decode_request, decode_reply):
        try:
            decoded: Any = decode(frames, LIMITS)
        except WireError:
            continue
        assert same(decode(as_bytes(decoded), LIMITS), decoded)


@given(st.one_of(requests, replies), st.data())
def test_flipped_bytes_are_a_wire_error_or_a_valid_message(message: Any, data: st.DataObject) -> None:
    header, *rest = as_bytes(message)
    damaged = bytearray(header)
    for place in data.draw(st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=4)):
        damaged[place] = data.draw(st.integers(0, 255))
    for decode in (decode_request, decode_reply):
        with contextlib.suppress(WireError):
            decode([bytes(damaged), *rest], LIMITS)


@given(forward_requests(), st.integers(-64, 64))
def test_a_tensor_of_another_length_is_a_bad_shape(request: ForwardRequest, more: int) -> None:
    header, tensor = as_bytes(request)
    wrong = tensor + bytes(more) if more > 0 else tensor[: len(tensor) + more]
    if more:
        assert code_of(decode_request, [header, wrong]) == ErrorCode.BAD_SHAPE
        assert code_of(decode_request, [header]) == ErrorCode.MALFORMED
        assert code_of(decode_request, [header, tensor, tensor]) == ErrorCode.MALFORMED


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("mark", 0x9B, ErrorCode.MALFORMED),
        ("version", 2, ErrorCode.BAD_VERSION),
        ("type", 4, ErrorCode.MALFORMED),
        ("form", 5, ErrorCode.BAD_DTYPE),
        ("form", 255, ErrorCode.BAD_DTYPE),
        ("num_rows", 0, ErrorCode.BAD_SHAPE),
        ("num_rows", 3, ErrorCode.BAD_SHAPE),
        ("num_rows", 7, ErrorCode.TOO_LARGE),
        ("num_rows", 2**32 - 1, ErrorCode.TOO_LARGE),
        ("hidden_size", 13, ErrorCode.BAD_SHAPE),
        ("top_k", 4, ErrorCode.BAD_SHAPE),
        ("top_k", 2**32 - 1, ErrorCode.BAD_SHAPE),
        ("layer", 4, ErrorCode.UNKNOWN_LAYER),
        ("layer", 2**32 - 1, ErrorCode.UNKNOWN_LAYER),
    ],
)
def test_each_field_of_a_forward_request_is_held_to_the_plan(field: str, value: int, code: ErrorCode) -> None:
    frames = with_number(example_request(), field, value)
    assert code_of(decode_request, frames) == code


@pytest.mark.parametrize(
    ("place", "value", "code"),
    [
        (0, 1, ErrorCode.BAD_VERSION),
        (0, 2.0, ErrorCode.BAD_VERSION),
        (1, 99, ErrorCode.MALFORMED),
        (1, 3, ErrorCode.MALFORMED),
        (2, -1, ErrorCode.MALFORMED),
        (3, 7.0, ErrorCode.MALFORMED),
        (4, True, ErrorCode.MALFORMED),
    ],
)
def test_each_field_of_a_ping_is_held_to_its_type(place: int, value: Any, code: ErrorCode) -> None:
    frames = with_header(Ping(1, 2, 3), lambda header: header.__setitem__(place, value))
    assert code_of(decode_request, frames) == code


@given(forward_requests(), st.data())
def test_a_header_of_another_length_is_refused(request: ForwardRequest, data: st.DataObject) -> None:
    header, tensor = as_bytes(request)
    cut = data.draw(st.integers(1, len(header) - 1))
    short = ErrorCode.MALFORMED if cut < REQUEST_BYTES else ErrorCode.BAD_SHAPE
    assert code_of(decode_request, [header[:cut], tensor]) == short
    assert code_of(decode_request, [header + b"\0", tensor]) == ErrorCode.BAD_SHAPE


@pytest.mark.parametrize("compute_s", [-1.0, float("inf"), float("nan")])
def test_a_reply_says_how_long_it_took(compute_s: float) -> None:
    reply = ForwardReply(1, np.zeros((1, LIMITS.hidden_size), np.int32), np.zeros(1, np.bool_), compute_s)
    assert code_of(decode_reply, as_bytes(reply)) == ErrorCode.MALFORMED


@pytest.mark.parametrize("flag", [2, 3, 255])
def test_a_flag_is_zero_or_one(flag: int) -> None:
    reply = ForwardReply(1, np.zeros((2, LIMITS.hidden_size), np.int32), np.zeros(2, np.bool_), 0.5)
    header, tensor = as_bytes(reply)
    assert code_of(decode_reply, [header[:-1] + bytes([flag]), tensor]) == ErrorCode.BAD_SHAPE
    assert code_of(decode_reply, [header[:-1], tensor]) == ErrorCode.BAD_SHAPE
    assert code_of(decode_reply, [header[: REPLY_BYTES - 1], tensor]) == ErrorCode.MALFORMED


@pytest.mark.parametrize("expert_id", [-2, LIMITS.num_experts, 2**31 - 1])
@pytest.mark.parametrize("num_rows", [1, 40])
def test_an_expert_the_model_has_not_is_refused(expert_id: int, num_rows: int) -> None:
    expert_ids = np.zeros((num_rows, LIMITS.top_k), np.int32)
    expert_ids[-1, -1] = expert_id
    frames = as_bytes(example_request(num_rows, expert_ids=expert_ids))
    assert code_of(decode_request, frames, replace(LIMITS, max_rows=40)) == ErrorCode.BAD_SHAPE


@pytest.mark.parametrize("exponent", [-127, 127])
def test_a_scale_that_is_no_normal_float_is_refused(exponent: int) -> None:
    frames = as_bytes(example_request(scale_exponents=np.full(2, exponent, np.int32)))
    assert code_of(decode_request, frames) == ErrorCode.BAD_SHAPE


def test_an_error_names_the_request_it_answers() -> None:
    frames = with_number(example_request(request_id=77), "layer", 99)
    with pytest.raises(WireError, match="layer 99 is not a MoE layer") as caught:
        decode_request(frames, LIMITS)
    assert caught.value.request_id == 77


def test_a_longer_header_than_any_message_has_is_not_even_parsed() -> None:
    frames = [bytes(LIMITS.max_header_bytes + 1)]
    assert code_of(decode_request, frames) == ErrorCode.TOO_LARGE


def test_a_small_header_cannot_announce_large_containers() -> None:
    huge_array, huge_bytes, huge_map = (
        b"\xdd\x7f\xff\xff\xff",
        b"\xc6\x7f\xff\xff\xff",
        b"\xdf\x7f\xff\xff\xff",
    )
    for header in (huge_array, huge_bytes, huge_map, b"\x91" * 2000):
        assert code_of(decode_request, [header]) == ErrorCode.MALFORMED


def test_replies_are_not_requests_and_requests_are_not_replies() -> None:
    assert code_of(decode_request, as_bytes(PONG)) == ErrorCode.MALFORMED
    assert code_of(decode_reply, as_bytes(Ping(1, 2, 3))) == ErrorCode.MALFORMED


@pytest.mark.parametrize(
    ("numbers", "code"),
    [
        ([3], ErrorCode.BAD_SHAPE),
        ([3, 0], ErrorCode.BAD_SHAPE),
        ([3, 2, 1], ErrorCode.BAD_SHAPE),
        ([3, 2**32 - 1, 1], ErrorCode.BAD_SHAPE),
        ([3, 2, 1, 1], ErrorCode.BAD_SHAPE),
        ([3, 2, 4, 1], ErrorCode.BAD_SHAPE),
        ([3, 1, LIMITS.num_experts], ErrorCode.BAD_SHAPE),
        ([3, 1, 1, 3, 1, 2], ErrorCode.BAD_SHAPE),
        ([4, 1, 1], ErrorCode.UNKNOWN_LAYER),
    ],
)
def test_a_set_of_experts_is_held_to_the_model(numbers: list[int], code: ErrorCode) -> None:
    block = np.array(numbers, "<u4").tobytes()
    frames = with_header(Drop(1, 2, {3: (1,)}), lambda header: header.__setitem__(4, block))
    assert code_of(decode_request, frames) == code
    assert (
        code_of(decode_request, [msgpack.packb([WIRE_VERSION, 9, 1, 2, block + b"x"])]) == ErrorCode.BAD_SHAPE
    )


def test_all_experts_of_a_model_fit_an_order() -> None:
    every = {layer: tuple(range(LIMITS.num_experts)) for layer in LIMITS.moe_layers}
    frames = as_bytes(Hold(2**64 - 1, 2**64 - 1, every, 2**64 - 1))
    assert len(frames[0]) <= LIMITS.max_plain_bytes
    assert decode_request(frames, LIMITS) == Hold(2**64 - 1, 2**64 - 1, every, 2**64 - 1)


def test_the_tensor_is_not_copied_at_either_end() -> None:
    request = example_request()
    frames = encode(request)
    assert frames[1] is request.rows.hidden
    received = bytearray(bytes(frames[1]))
    decoded = decode_request([frames[0], received], LIMITS)
    assert isinstance(decoded, ForwardRequest)
    received[:4] = np.float32(9.0).tobytes()
    assert decoded.rows.hidden[0, 0] == 9.0


def test_a_tensor_at_an_odd_address_is_still_aligned_for_the_kernels() -> None:
    header, tensor = as_bytes(example_request())
    decoded = decode_request([header, memoryview(b"x" + tensor)[1:]], LIMITS)
    assert isinstance(decoded, ForwardRequest)
    assert decoded.rows.hidden.flags.aligned
    assert decoded.rows.hidden.tobytes() == tensor


def test_routing_arrays_are_aligned_for_the_kernels() -> None:
    header, tensor = as_bytes(example_request())
    decoded = decode_request([memoryview(b"x" + header)[1:], tensor], LIMITS)
    assert isinstance(decoded, ForwardRequest)
    for array in decoded.rows[1:]:
        assert array.flags.c_contiguous
        assert array.flags.aligned


@given(st.integers(1, LIMITS.max_rows))
def test_no_message_within_the_limits_exceeds_the_frame_sizes_they_give(num_rows: int) -> None:
    header, tensor = as_bytes(example_request(num_rows, request_id=2**64 - 1))
    assert len(header) <= LIMITS.max_header_bytes
    assert max(len(header), len(tensor)) <= LIMITS.max_frame_bytes
    assert num_rows * LIMITS.routing_bytes_per_row < len(header)


def test_the_version_is_at_the_beginning_of_every_message() -> None:
    for message in (Hello(1, 2), Ping(1, 2, 3), PONG, ErrorReply(1, ErrorCode.BUSY, "")):
        assert msgpack.unpackb(as_bytes(message)[0])[:1] == [WIRE_VERSION]
    reply = ForwardReply(1, np.zeros((1, LIMITS.hidden_size), np.int32), np.zeros(1, np.bool_), 0.5)
    for forward in (example_request(), reply):
        assert as_bytes(forward)[0][:2] == bytes([MARK, WIRE_VERSION])


def test_a_rounded_value_below_the_range_is_refused() -> None:
    hidden = rounded(np.random.default_rng(0), 2, (32,))
    hidden.parts[0].q[1, 7] = -128
    frames = as_bytes(example_request(hidden=hidden))
    assert code_of(decode_request, frames) == ErrorCode.BAD_SHAPE


def test_rounded_rows_of_another_size_are_refused() -> None:
    header, tensor = as_bytes(example_request(hidden=rounded(np.random.default_rng(0), 2, (32, 256))))
    for wrong in (tensor[:-4], tensor + b"\0" * 4, b""):
        assert code_of(decode_request, [header, wrong]) == ErrorCode.BAD_SHAPE
    narrow = replace(LIMITS, hidden_size=48)
    rows = example_request(hidden=np.ones((2, 48), np.float32))
    changed = with_number(rows, "form", 2)
    with pytest.raises(WireError, match="do not fit a hidden size of 48"):
        decode_request(changed, narrow)


def test_rounded_scales_at_an_odd_address_are_aligned_for_the_kernels() -> None:
    hidden = rounded(np.random.default_rng(0), 3, (256,))
    header, tensor = as_bytes(example_request(3, hidden=hidden))
    decoded = decode_request([header, memoryview(b"x" + tensor)[1:]], LIMITS)
    assert isinstance(decoded, ForwardRequest)
    assert isinstance(decoded.rows.hidden, RoundedHidden)
    assert decoded.rows.hidden.parts[0].scales.flags.aligned
    assert same(decoded.rows.hidden.parts[0], hidden.parts[0])
