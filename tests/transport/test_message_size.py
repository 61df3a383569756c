"""The message sizes that plans and simulations count are those of the wire's real frames."""

from __future__ import annotations

import numpy as np
import pytest

from placement.message_size import MAX_MESSAGE_ROWS, message_size
from placement.model_shape import STEP_3_5_FLASH
from placement.wire_form import BFLOAT16_ROWS, FLOAT32_ROWS, WIRE_FORMS, WireForm
from transport.expert_rows import ExpertRows
from transport.messages import ForwardReply, ForwardRequest, WireLimits
from transport.rounded_hidden import RoundedHidden, RoundedPart
from transport.wire import encode

HIDDEN, TOP_K = STEP_3_5_FLASH.hidden_size, STEP_3_5_FLASH.top_k


def num_bytes(message: ForwardRequest | ForwardReply) -> int:
    return sum(memoryview(frame).nbytes for frame in encode(message))


def rounded(num_rows: int, blocks: tuple[int, ...]) -> RoundedHidden:
    q = np.zeros((num_rows, HIDDEN), np.int8)
    return RoundedHidden(
        tuple(RoundedPart(block, q, np.zeros((num_rows, HIDDEN // block), np.float32)) for block in blocks)
    )


def request(num_rows: int, wire: WireForm) -> ForwardRequest:
    plain = np.zeros((num_rows, HIDDEN), np.float32 if wire == FLOAT32_ROWS else np.uint16)
    rows = ExpertRows(
        rounded(num_rows, wire.blocks) if wire.blocks else plain,
        np.zeros((num_rows, TOP_K), np.int32),
        np.zeros((num_rows, TOP_K), np.float32),
        np.zeros(num_rows, np.int32),
    )
    return ForwardRequest(1, 0, 0, 3, rows)


def reply(num_rows: int) -> ForwardReply:
    return ForwardReply(1, np.zeros((num_rows, HIDDEN), np.int32), np.zeros(num_rows, np.bool_), 0.0)


@pytest.mark.parametrize("wire", WIRE_FORMS, ids=lambda wire: wire.name)
def test_a_row_adds_what_the_cost_model_says_to_a_request_and_its_reply(wire: WireForm) -> None:
    size = message_size(STEP_3_5_FLASH, (wire,))
    # Two sizes whose headers write their numbers alike.
    few, more = 140, 200
    asked = num_bytes(request(more, wire)) - num_bytes(request(few, wire))
    answered = num_bytes(reply(more)) - num_bytes(reply(few))
    assert asked == (more - few) * size.request_bytes_per_row
    assert answered == (more - few) * size.reply_bytes_per_row


def test_a_message_of_the_published_model_has_the_published_size() -> None:
    size = message_size(STEP_3_5_FLASH, (BFLOAT16_ROWS,))
    assert size.request_bytes_per_row == 8192 + 8 * 4 + 8 * 4 + 4
    assert size.reply_bytes_per_row == 16384 + 1


def test_layers_that_differ_count_with_their_mean() -> None:
    both = message_size(STEP_3_5_FLASH, (BFLOAT16_ROWS, FLOAT32_ROWS))
    assert both.hidden_bytes_per_row == 3 * HIDDEN


def test_as_many_rows_as_a_message_takes_are_within_the_limits_of_both_ends() -> None:
    limits = WireLimits.for_shape(STEP_3_5_FLASH)
    assert limits.max_rows == MAX_MESSAGE_ROWS
    asked = encode(request(MAX_MESSAGE_ROWS, FLOAT32_ROWS))
    assert memoryview(asked[0]).nbytes <= limits.max_header_bytes
    assert memoryview(asked[1]).nbytes <= limits.max_frame_bytes
