"""The message sizes that plans and simulations count are those of the wire's real frames."""

from __future__ import annotations

import numpy as np
import pytest

from placement.message_size import MAX_MESSAGE_ROWS, message_size
from placement.model_shape import STEP_3_5_FLASH
from transport.expert_rows import ExpertRows
from transport.messages import ForwardReply, ForwardRequest, WireLimits
from transport.rounded_hidden import RoundedHidden, RoundedPart
from transport.wire import encode

HIDDEN, TOP_K = STEP_3_5_FLASH.hidden_size, STEP_3_5_FLASH.top_k


def num_bytes(message: ForwardRequest | ForwardReply) -> int:
    return sum(memoryview(frame).nbytes for frame in encode(message))


def rounded(num_rows: int) -> RoundedHidden:
    q, scales = np.zeros((num_rows, HIDDEN), np.int8), np.zeros((num_rows, HIDDEN // 256), np.float32)
    return RoundedHidden((RoundedPart(256, q, scales),))


def request(num_rows: int, dtype: type[np.float32] | type[np.uint16] | type[np.int8]) -> ForwardRequest:
    rows = ExpertRows(
        rounded(num_rows) if dtype is np.int8 else np.zeros((num_rows, HIDDEN), dtype),
        np.zeros((num_rows, TOP_K), np.int32),
        np.zeros((num_rows, TOP_K), np.float32),
        np.zeros(num_rows, np.int32),
    )
    return ForwardRequest(1, 0, 3, rows)


def reply(num_rows: int) -> ForwardReply:
    return ForwardReply(1, np.zeros((num_rows, HIDDEN), np.int32), np.zeros(num_rows, np.bool_), 0.0)


@pytest.mark.parametrize(("dtype", "bytes_per_activation"), [(np.float32, 4), (np.uint16, 2), (np.int8, 1)])
def test_a_row_adds_what_the_cost_model_says_to_a_request_and_its_reply(
    dtype: type[np.float32] | type[np.uint16] | type[np.int8], bytes_per_activation: int
) -> None:
    size = message_size(STEP_3_5_FLASH, bytes_per_activation)
    # Two sizes whose headers write their numbers alike.
    few, more = 140, 200
    asked = num_bytes(request(more, dtype)) - num_bytes(request(few, dtype))
    answered = num_bytes(reply(more)) - num_bytes(reply(few))
    assert asked == (more - few) * size.request_bytes_per_row
    assert answered == (more - few) * size.reply_bytes_per_row


def test_a_message_of_the_published_model_has_the_published_size() -> None:
    size = message_size(STEP_3_5_FLASH, bytes_per_activation=2)
    assert size.request_bytes_per_row == 8192 + 8 * 4 + 8 * 4 + 4
    assert size.reply_bytes_per_row == 16384 + 1


def test_as_many_rows_as_a_message_takes_are_within_the_limits_of_both_ends() -> None:
    limits = WireLimits.for_shape(STEP_3_5_FLASH, epoch=0)
    assert limits.max_rows == MAX_MESSAGE_ROWS
    asked = encode(request(MAX_MESSAGE_ROWS, np.float32))
    assert memoryview(asked[0]).nbytes <= limits.max_header_bytes
    assert memoryview(asked[1]).nbytes <= limits.max_frame_bytes
